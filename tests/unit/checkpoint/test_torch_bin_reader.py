from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.tensors import TensorEntry
from headrace.checkpoint.torch_bin_reader import read_torch_bin
from headrace.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read(entry: TensorEntry) -> torch.Tensor:
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        data = stream.read(entry.num_bytes)
    if not data:
        return torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, entry.dtype))
    if entry.strides is not None:
        return flat.as_strided(entry.shape, entry.strides)
    return flat.view(entry.shape)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@LEGACY
def test_entries_name_the_bytes_of_their_tensors(file: Path, zipped: bool) -> None:
    base = torch.arange(24.0)
    tensors = {
        "matrix": base.view(4, 6),
        "same storage, later": base[6:],
        "transposed": base.view(4, 6).T,
        "part": base.view(4, 6)[1:3, 2:5],
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "numbers": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    entries = {entry.name: entry for entry in read_torch_bin(file)}
    assert entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read(entries[name]), tensor), name
        assert entries[name].dtype == str(tensor.dtype).removeprefix("torch.")
    assert entries["matrix"].strides is None
    assert entries["transposed"].strides == (1, 6)
    assert entries["matrix"].offset == entries["transposed"].offset


@LEGACY
def test_a_state_dict_of_a_module_is_read(file: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), file, _use_new_zipfile_serialization=zipped)
    read_back = {entry.name: read(entry) for entry in read_torch_bin(file)}
    assert read_back.keys() == module.state_dict().keys()
    assert all(torch.equal(read_back[name], value) for name, value in module.state_dict().items())


class Code:
    def __init__(self, function: Callable[..., object], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return self.call


@LEGACY
def test_a_pickle_with_code_is_refused_and_not_run(file: Path, tmp_path: Path, zipped: bool) -> None:
    victim = tmp_path / "ran"
    torch.save({"a": Code(os.mkdir, str(victim))}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir") as raised:
        read_torch_bin(file)
    assert str(file) in str(raised.value)
    assert not victim.exists()


def test_a_bare_pickle_with_code_is_refused_and_not_run(file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "ran"
    file.write_bytes(pickle.dumps(Code(os.mkdir, str(victim))))
    with pytest.raises(UnsafeCheckpointError, match="may run code"):
        read_torch_bin(file)
    assert not victim.exists()


def test_a_whole_pickled_module_is_refused(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_bin(file)


@LEGACY
def test_a_training_checkpoint_is_refused(file: Path, zipped: bool) -> None:
    torch.save({"epoch": 3, "a": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CorruptCheckpointError, match="'epoch' is a int"):
        read_torch_bin(file)


@LEGACY
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(file: Path, zipped: bool, part: float) -> None:
    torch.save({"a": torch.randn(500), "b": torch.randn(500)}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CorruptCheckpointError) as raised:
        read_torch_bin(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02}q\x00."])
def test_a_file_of_another_kind_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="not a torch file"):
        read_torch_bin(file)


def test_a_git_lfs_pointer_says_what_to_run(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(CorruptCheckpointError, match="git lfs pull"):
        read_torch_bin(file)


def test_a_compressed_archive_is_refused(file: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.bin"
    torch.save({"a": torch.ones(100)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UnsupportedCheckpointError, match="compressed"):
        read_torch_bin(file)


def test_a_missing_file_is_not_found(file: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"pytorch_model\.bin"):
        read_torch_bin(file)


@pytest.mark.parametrize("claimed", [4 << 20, 90_000_000])
def test_a_length_beyond_the_file_takes_no_memory(file: Path, claimed: int) -> None:
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    length, content = (16).to_bytes(4, "little"), file.read_bytes()
    assert b"X" + length + b"protocol_version" in content
    file.write_bytes(content.replace(b"X" + length, b"X" + claimed.to_bytes(4, "little"), 1))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError, match=r"only .* remain"):
            read_torch_bin(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
