from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.checkpoint.safetensors_reader import read_header, read_index
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(file: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_entries_name_the_bytes_of_their_tensors(file: Path) -> None:
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.arange(5, dtype=np.float16),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    entries = {entry.name: entry for entry in read_header(file)}
    content = file.read_bytes()
    assert entries.keys() == tensors.keys()
    for name, array in tensors.items():
        entry = entries[name]
        assert entry.dtype == array.dtype.name
        assert entry.shape == array.shape
        assert content[entry.offset : entry.offset + entry.num_bytes] == array.tobytes()


def test_entries_come_in_the_order_of_their_bytes(file: Path) -> None:
    header = {
        "late": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
        "early": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    }
    assert [entry.name for entry in read_header(write(file, header, bytes(8)))] == ["early", "late"]


def entry(**changes: object) -> dict[str, object]:
    return {"a": {**GOOD["a"], **changes}}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"a": ', "not JSON"),
        (b"{\xff}", "not JSON"),
        (b'{"a": 1, "a": 1}', "'a' twice"),
        ({"a": {"dtype": "F32", "shape": [6]}}, "lacks"),
        ({"a": [1]}, "lacks"),
        (entry(shape=[2, 4]), "32 bytes"),
        (entry(shape=[-2, -3]), "cannot be"),
        (entry(shape=[2, True]), "cannot be"),
        (entry(shape="23"), "cannot be"),
        (entry(data_offsets=[24, 0]), "cannot be"),
        (entry(data_offsets=[0, 24, 24]), "cannot be"),
        (entry(shape=[1, 3], data_offsets=[12, 24]), "leaves a gap"),
        ({**GOOD, "b": {"dtype": "F32", "shape": [5], "data_offsets": [4, 24]}}, "overlaps"),
        ({**GOOD, "b": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]}}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "4 bytes follow"),
    ],
)
def test_a_header_that_cannot_be_is_refused(file: Path, header: object, says: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=says) as raised:
        read_header(write(file, header))
    assert str(file) in str(raised.value)


def test_a_truncated_shard_names_the_tensor_and_both_sizes(file: Path) -> None:
    write(file, GOOD)
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 5)
    with pytest.raises(CorruptCheckpointError, match=rf"tensor a ends at byte {whole}, the file has {whole - 5}"):
        read_header(file)


@pytest.mark.parametrize("keep", [0, 5, 8, 20])
def test_a_file_that_ends_in_its_header_is_refused(file: Path, keep: int) -> None:
    write(file, GOOD)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpointError, match="download or copy"):
        read_header(file)


def test_a_header_longer_than_the_format_allows_is_not_read(file: Path) -> None:
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptCheckpointError, match="does not begin"):
        read_header(file)


def test_a_git_lfs_pointer_says_what_to_run(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(CorruptCheckpointError, match="git lfs pull"):
        read_header(file)


def test_a_saved_web_page_is_recognised(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(CorruptCheckpointError, match="web page"):
        read_header(file)


def test_an_unknown_dtype_is_named(file: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"tensor a has dtype 'F4'"):
        read_header(write(file, entry(dtype="F4")))


def test_a_file_that_is_not_there_is_not_found(file: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, target: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(CorruptCheckpointError, match="tensor 'a'"):
        read_index(index)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "not an index"),
        ('{"weight_map": []}', "not an index"),
        ('{"weight_map": {"a": 1}}', "not an index"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "expected the name of a .safetensors file"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CorruptCheckpointError, match=says):
        read_index(index)
