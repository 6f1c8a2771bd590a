"""Files that change, vanish or cannot be read while a model is streamed from them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from headrace.engine.requests import GenerationRequest
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, SweepError
from headrace.sampling.parameters import SamplingParams
from tests.integration.commands import headrace
from tests.integration.streamed_models import (
    NEW_TOKENS,
    PROMPTS,
    file_of,
    layer_file,
    run_rows,
    save_sharded,
    streamed,
    tokens_of,
)

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    save_sharded(folder)
    return folder


@pytest.fixture(scope="module")
def expected(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[int, ...]], list[str]]:
    """The answers that nothing disturbs: tokens, and lines of a job."""
    output = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    with streamed(original) as llm:
        run_rows(llm, output)
        return tokens_of(llm), contents(output)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def contents(output: Path) -> list[str]:
    """What a job wrote, without what depends on the clock; every line is whole."""
    lines = output.read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.dumps({key: json.loads(line)[key] for key in ("id", "text", "finish_reason")}) for line in lines]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"other bytes")


def lengthen(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more bytes")


def replace(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(bytes(file.stat().st_size))
    other.replace(file)


Read = Callable[[int, Sequence[memoryview], int], int]


def fail_once_from(file: Path, call: int, code: int, read: Read) -> Read:
    """Returns a `preadv` whose `call`th reading of `file`, and no other one, fails."""
    num_calls = 0

    def failing(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal num_calls
        if os.path.samestat(os.fstat(descriptor), file.stat()):
            num_calls += 1
            if num_calls == call:
                raise OSError(code, os.strerror(code))
        return read(descriptor, buffers, offset)

    return failing


@pytest.mark.parametrize("spoil", [truncate, overwrite, lengthen])
def test_a_file_that_changes_ends_the_job_with_its_name_and_the_finished_rows_in_the_output(
    spoil: Callable[[Path], None], model: Path, expected: tuple[list[tuple[int, ...]], list[str]], tmp_path: Path
) -> None:
    file, output = layer_file(model), tmp_path / "out.jsonl"
    with streamed(model) as llm:
        with pytest.raises(SweepError) as raised:
            run_rows(llm, output, lambda: spoil(file))
        assert str(file) in str(raised.value)
        assert "start again, and leave the file alone" in str(raised.value)
        with pytest.raises(SweepError, match=file.name):
            tokens_of(llm)  # what it reads from now on is not the model that it began with
    lines = contents(output)
    assert 1 <= len(lines) < len(PROMPTS)
    assert lines == expected[1][: len(lines)]


def test_a_file_that_changed_is_read_by_a_new_engine(
    model: Path, expected: tuple[list[tuple[int, ...]], list[str]], tmp_path: Path
) -> None:
    file = layer_file(model)
    content = file.read_bytes()
    with streamed(model) as llm, pytest.raises(SweepError):
        run_rows(llm, tmp_path / "out.jsonl", lambda: truncate(file))
    with pytest.raises(CorruptCheckpointError, match=file.name), streamed(model):
        pass
    file.write_bytes(content)
    with streamed(model) as llm:
        assert tokens_of(llm) == expected[0]


@pytest.mark.parametrize("remove", [Path.unlink, replace])
def test_files_that_are_deleted_or_replaced_while_in_use_are_read_to_the_end(
    remove: Callable[[Path], None], model: Path, expected: tuple[list[tuple[int, ...]], list[str]], tmp_path: Path
) -> None:
    def remove_all() -> None:
        for file in model.glob("*.safetensors"):
            remove(file)

    with streamed(model) as llm:
        run_rows(llm, tmp_path / "out.jsonl", remove_all)
        assert tokens_of(llm) == expected[0]
    assert contents(tmp_path / "out.jsonl") == expected[1]


def test_files_that_are_deleted_before_the_first_row_are_in_use_already(
    model: Path, expected: tuple[list[tuple[int, ...]], list[str]]
) -> None:
    with streamed(model) as llm:
        shutil.rmtree(model)
        assert tokens_of(llm) == expected[0]


def test_a_file_that_is_gone_from_the_start_is_named(model: Path, tmp_path: Path) -> None:
    layer_file(model).unlink()
    with pytest.raises(CheckpointNotFoundError, match=layer_file(model).name), streamed(model):
        pass
    (tmp_path / "rows").write_text('{"prompt": [1, 2]}\n')
    ran = headrace("run", tmp_path / "rows", "-o", tmp_path / "out", "-m", model, "-q")
    assert ran.status == 2
    assert ran.stderr.startswith("headrace: ") and ran.stderr.count("\n") == 1
    assert layer_file(model).name in ran.stderr


@pytest.mark.parametrize("parameter", ["model.layers.4.mlp.gate_proj.weight", EMBEDDING])
def test_after_a_read_error_the_engine_serves_the_next_rows(
    parameter: str,
    model: Path,
    expected: tuple[list[tuple[int, ...]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, output = file_of(model, parameter), tmp_path / "out.jsonl"
    with streamed(model) as llm:
        fail = fail_once_from(file, 5, errno.EIO, os.preadv)
        with pytest.raises(SweepError, match="Input/output error; check the disk") as raised:
            run_rows(llm, output, lambda: monkeypatch.setattr(os, "preadv", fail))
        assert str(file) in str(raised.value)
        assert tokens_of(llm) == expected[0]
    lines = contents(output)
    assert 1 <= len(lines) < len(PROMPTS)
    assert lines == expected[1][: len(lines)]


@pytest.mark.parametrize("call", [1, 4, 9])
def test_after_a_read_error_every_row_goes_on_from_where_it_was(
    call: int,
    model: Path,
    expected: tuple[list[tuple[int, ...]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with streamed(model) as llm:
        engine = llm._engine
        assert engine is not None
        tickets = [
            engine.add(
                GenerationRequest(
                    request_id=number,
                    prompt_token_ids=tuple(prompt),
                    params=SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
                )
            )
            for number, (prompt, count) in enumerate(zip(PROMPTS, NEW_TOKENS, strict=True))
        ]
        num_failed = 0
        monkeypatch.setattr(os, "preadv", fail_once_from(layer_file(model), call, errno.EIO, os.preadv))
        while len(engine.finished) < len(tickets):
            try:
                engine.step()
            except SweepError:
                num_failed += 1
        assert num_failed == 1
        assert [engine.finished.pop(ticket).outputs[0].token_ids for ticket in tickets] == expected[0]


def test_a_disk_that_fails_for_good_fails_every_sweep_and_nothing_hangs(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with streamed(model) as llm:
        monkeypatch.setattr(os, "preadv", fail)
        for _ in range(4):
            with pytest.raises(SweepError, match="Input/output error"):
                tokens_of(llm)


def test_a_file_system_that_refuses_direct_reads_at_opening_gives_the_same_tokens(
    model: Path, expected: tuple[list[tuple[int, ...]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, num_refused = os.open, 0

    def refuse_direct(path: object, flags: int, *more: int, **names: int) -> int:
        nonlocal num_refused
        if flags & os.O_DIRECT:
            num_refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, *more, **names)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse_direct)
    with streamed(model) as llm:
        assert tokens_of(llm) == expected[0]
    assert num_refused >= len(list(model.glob("*.safetensors")))


def test_a_disk_that_refuses_direct_reads_when_reading_gives_the_same_tokens(
    model: Path, expected: tuple[list[tuple[int, ...]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, refused = os.preadv, set()

    def refuse_direct(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.add(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse_direct)
    with streamed(model) as llm:
        assert tokens_of(llm) == expected[0]
    assert refused
