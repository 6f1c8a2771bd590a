"""Every fault of the corpus ends in a typed error that names file and remedy, at once and without much memory."""

from __future__ import annotations

import json
import re
import shutil
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import psutil
import pytest

from headrace import LLM
from headrace.errors import HeadraceError
from headrace.storage.process_memory import resident_bytes
from tests.checkpoint_faults.bin_faults import BIN_FAULTS, VICTIM
from tests.checkpoint_faults.fault import VOCAB_SIZE, WEIGHTS, Base, Fault, change_json, save_good
from tests.checkpoint_faults.safetensors_faults import SAFETENSORS_FAULTS
from tests.checkpoint_faults.settings_faults import CODE_FILE, SETTINGS_FAULTS
from tests.integration.commands import headrace, start_headrace
from tests.tiny_models import write_tokenizer

FAULTS = {**SAFETENSORS_FAULTS, **BIN_FAULTS, **SETTINGS_FAULTS}
MEMORY = "1GiB"
MAX_GROWTH_BYTES = 100 * 1024**2

every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name.replace(" ", "-"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[Base, Path]:
    """A good folder of each kind; one has been loaded, so that what the first load brings in is there."""
    folders: dict[Base, Path] = {base: tmp_path_factory.mktemp(base) for base in get_args(Base)}
    for base, folder in folders.items():
        save_good(base, folder)
    LLM(folders["single"], memory=MEMORY).close()
    return folders


def broken(fault: Fault, good: dict[Base, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(good[fault.base], folder)
    fault.apply(folder)
    return folder


@pytest.fixture
def nothing_is_left(good: dict[Base, Path]) -> Iterator[None]:
    process = psutil.Process()
    threads, files = set(threading.enumerate()), process.num_fds()
    yield
    assert set(threading.enumerate()) <= threads
    assert process.num_fds() == files


@pytest.mark.parametrize("base", get_args(Base))
def test_the_folders_that_are_broken_were_good(base: Base, good: dict[Base, Path]) -> None:
    with LLM(good[base], memory=MEMORY) as llm:
        (output,) = llm.generate("w1 w2 w3")
    assert output.outputs[0].token_ids


@every_fault
def test_a_fault_is_a_typed_error_that_names_file_and_remedy(
    fault: Fault, good: dict[Base, Path], tmp_path: Path, nothing_is_left: None
) -> None:
    folder = broken(fault, good, tmp_path)
    before = resident_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(HeadraceError) as raised:
            LLM(folder, memory=MEMORY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(raised.value)
    assert type(raised.value) is fault.error, message
    assert str(folder) in message and fault.file in message
    assert re.search(fault.says, message), message
    assert re.search(fault.remedy, message), message
    assert "\n" not in message and len(message) < 2000
    assert peak < MAX_GROWTH_BYTES
    assert resident_bytes() - before < MAX_GROWTH_BYTES
    assert not (folder / VICTIM).exists() and not (folder / CODE_FILE).exists()


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize(
    "name",
    [
        "weights cut off within the header",
        "a header with sizes of thousands of digits",
        "weights that are a link out of the folder",
        "a pipe in place of weights",
        "an index that is nested without end",
        "a bin file whose pickle runs code",
        "an empty configuration",
        "a billion layers",
        "heads as wide as memory",
        "an activation that does not exist",
        "a tokenizer that is cut off",
        "a tokenizer with a larger vocabulary than the model",
        "a chat template that does not compile",
    ],
)
def test_the_command_line_says_it_in_one_line_with_status_2(
    name: str, command: str, good: dict[Base, Path], tmp_path: Path, nothing_is_left: None
) -> None:
    fault, folder = FAULTS[name], broken(FAULTS[name], good, tmp_path)
    if command == "run":
        ran = headrace("run", "-", "-o", "-", "--model", folder, "--memory", MEMORY, stdin=b'{"prompt": "w1"}\n')
    else:
        ran = headrace("inspect", folder)
    assert (ran.status, ran.stdout) == (2, b""), ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("headrace: ") and re.search(fault.says, line) and re.search(fault.remedy, line)


def test_a_process_of_its_own_ends_with_status_2_and_one_line(good: dict[Base, Path], tmp_path: Path) -> None:
    fault = FAULTS["weights that lack their last byte"]
    with start_headrace("inspect", broken(fault, good, tmp_path)) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    (line,) = stderr.decode().splitlines()
    assert re.search(fault.says, line) and re.search(fault.remedy, line)


def load(folder: Path) -> None:
    LLM(folder, memory=MEMORY).close()


def test_a_snapshot_of_the_hubs_cache_whose_files_are_links_to_blobs_loads(
    good: dict[Base, Path], tmp_path: Path
) -> None:
    repository = tmp_path / "models--somebody--something"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(good["sharded"].iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    load(snapshot)
    secret = tmp_path / "secret"
    (repository / "blobs" / "0").rename(secret)
    (repository / "blobs" / "0").symlink_to(secret)
    with pytest.raises(HeadraceError, match="out of the checkpoint's folder"):
        load(snapshot)


def test_a_folder_that_is_a_link_and_links_within_it_load(good: dict[Base, Path], tmp_path: Path) -> None:
    shutil.copytree(good["single"], tmp_path / "here")
    (tmp_path / "here" / WEIGHTS).rename(tmp_path / "here" / "weights")
    (tmp_path / "here" / WEIGHTS).symlink_to("weights")
    (tmp_path / "link").symlink_to("here")
    load(tmp_path / "link")


@pytest.mark.parametrize("missing", ["generation_config.json", "tokenizer_config.json"])
def test_files_that_may_be_missing_are_not_missed(missing: str, good: dict[Base, Path], tmp_path: Path) -> None:
    shutil.copytree(good["single"], tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    load(tmp_path / "model")


def test_a_tokenizer_class_that_does_not_exist_is_not_needed_where_tokenizer_json_says_all(
    good: dict[Base, Path], tmp_path: Path
) -> None:
    shutil.copytree(good["single"], tmp_path / "model")
    change_json(tmp_path / "model" / "tokenizer_config.json", tokenizer_class="BleepTokenizer")
    load(tmp_path / "model")


def test_a_model_without_a_tokenizer_loads_where_prompts_are_token_ids_only(
    good: dict[Base, Path], tmp_path: Path
) -> None:
    shutil.copytree(good["single"], tmp_path / "model")
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    LLM(tmp_path / "model", memory=MEMORY, load_format="dummy").close()


def test_added_tokens_beyond_the_vocabulary_are_refused_only_when_a_prompt_has_them(
    good: dict[Base, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good["single"], folder)
    write_tokenizer(folder, VOCAB_SIZE)
    words = json.loads((folder / "tokenizer.json").read_text())
    added = {"id": VOCAB_SIZE, "content": "<pad>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    change_json(folder / "tokenizer.json", added_tokens=[*words["added_tokens"], {**added, **flags}])
    with LLM(folder, memory=MEMORY) as llm:
        assert llm.generate("w1")[0].error is None
        with pytest.raises(HeadraceError, match=f"token {VOCAB_SIZE} is not in the vocabulary"):
            llm.generate("w1 <pad>")
