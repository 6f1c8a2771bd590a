"""Faults of torch's `.bin` files: zip archives with a pickle."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import torch

from headrace.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    WeightMismatchError,
)
from tests.checkpoint_faults.fault import BIN, QUERY, Corpus, flip_bit, keep_bytes

BIN_FAULTS = Corpus()
fault = BIN_FAULTS.fault

VICTIM = "made-by-the-pickle"
SAFER = "safetensors checkpoint"


class Code:
    """What its pickle runs makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._victim = str(folder / VICTIM)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._victim,)


def rewrite(folder: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Writes the archive again with `records` in the place of its own, by the last part of their names."""
    with zipfile.ZipFile(folder / BIN) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / BIN, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, records.get(name.rpartition("/")[2], content))


@fault("bin", CorruptCheckpointError, BIN, "truncated or not a torch file|empty")
def an_empty_bin_file(folder: Path) -> None:
    (folder / BIN).write_bytes(b"")


@fault("bin", CorruptCheckpointError, BIN, "truncated or not a torch file")
def a_bin_file_cut_off_at_its_end(folder: Path) -> None:
    keep_bytes(folder / BIN, -5000)


@fault("bin", CorruptCheckpointError, BIN, "not a torch file")
def a_bin_file_of_zeros(folder: Path) -> None:
    (folder / BIN).write_bytes(bytes(100_000))


@fault("bin", CorruptCheckpointError, BIN, "not a torch file")
def a_bin_file_of_text(folder: Path) -> None:
    (folder / BIN).write_text("not found\n" * 100)


@fault("bin", CorruptCheckpointError, BIN, "git lfs pull", "git lfs pull")
def a_git_lfs_pointer_in_place_of_a_bin_file(folder: Path) -> None:
    (folder / BIN).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@fault("bin", UnsafeCheckpointError, BIN, r"posix\.mkdir", SAFER)
def a_bin_file_whose_pickle_runs_code(folder: Path) -> None:
    torch.save({QUERY: Code(folder)}, folder / BIN)


@fault("bin", UnsafeCheckpointError, BIN, r"posix\.mkdir", SAFER)
def a_bare_pickle_that_runs_code(folder: Path) -> None:
    (folder / BIN).write_bytes(pickle.dumps(Code(folder)))


@fault("bin", UnsafeCheckpointError, BIN, r"builtins\.eval", SAFER)
def a_pickle_that_asks_for_eval(folder: Path) -> None:
    rewrite(folder, {"data.pkl": b"cbuiltins\neval\n(V1+1\ntR."})


@fault("bin", UnsafeCheckpointError, BIN, r"torch\.load|torch\._utils", SAFER)
def a_pickle_that_asks_for_another_function_of_torch(folder: Path) -> None:
    rewrite(folder, {"data.pkl": b"ctorch\nload\n(Vother\ntR."})


@fault("bin", CorruptCheckpointError, BIN, "pickle is damaged")
def a_pickle_that_is_cut_off(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    rewrite(folder, {"data.pkl": text[: len(text) // 2]})


@fault("bin", CorruptCheckpointError, BIN, "pickle is damaged")
def a_pickle_that_declares_a_text_of_exabytes(folder: Path) -> None:
    rewrite(folder, {"data.pkl": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x"})


@fault("bin", CorruptCheckpointError, BIN, "pickle is damaged")
def a_pickle_that_makes_place_for_a_billion_values(folder: Path) -> None:
    rewrite(folder, {"data.pkl": b"\x80\x04Nr" + (2**30).to_bytes(4, "little") + b"."})


@fault("bin", CorruptCheckpointError, BIN, "holds a list; expected tensors by name", "state_dict|safetensors")
def a_pickle_of_a_list(folder: Path) -> None:
    torch.save([torch.ones(2)], folder / BIN)


@fault("bin", CorruptCheckpointError, BIN, "'step' is a int", "state_dict")
def a_training_state_in_place_of_weights(folder: Path) -> None:
    torch.save({"step": 12, QUERY: torch.ones(2)}, folder / BIN)


@fault("bin", CorruptCheckpointError, BIN, "no data.pkl")
def an_archive_without_a_pickle(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


@fault("bin", CorruptCheckpointError, BIN, "tensor .* reaches beyond its storage")
def a_tensor_that_is_larger_than_its_storage(folder: Path) -> None:
    stream = io.BytesIO()
    torch.save({QUERY: torch.ones(64, 64)}, stream)
    with zipfile.ZipFile(stream) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert text.count(b"K@K@") == 1
    rewrite(folder, {"data.pkl": text.replace(b"K@K@", b"K@K\x7f")})


@fault("bin", CorruptCheckpointError, BIN, "tensor .* reaches beyond its storage")
def a_storage_that_is_not_in_the_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / BIN, "w") as archive:
        for name, content in contents.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)


@fault("bin", CorruptCheckpointError, BIN, "storage .* is shorter than its record|holds .* bytes")
def a_storage_that_is_shorter_than_declared(folder: Path) -> None:
    rewrite(folder, {"1": bytes(16)})


@fault("bin", UnsupportedCheckpointError, BIN, "compressed", "save .* again")
def an_archive_that_is_compressed(folder: Path) -> None:
    rewrite(folder, {}, zipfile.ZIP_DEFLATED)


@fault("bin", CorruptCheckpointError, BIN, "takes .* when it is unpacked|larger than")
def a_pickle_that_unpacks_to_a_gigabyte(folder: Path) -> None:
    with zipfile.ZipFile(folder / BIN, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as out:
        for _ in range(1024):
            out.write(bytes(1 << 20))


@fault("bin", CorruptCheckpointError, BIN, "pickle is damaged|truncated or not a torch file")
def a_bin_file_with_a_flipped_bit_in_its_pickle(folder: Path) -> None:
    flip_bit(folder / BIN, 120, 7)


@fault("bin", UnsupportedCheckpointError, BIN, "big-endian", SAFER)
def a_bin_file_of_a_big_endian_machine(folder: Path) -> None:
    rewrite(folder, {"byteorder": b"big"})


@fault("bin", WeightMismatchError, BIN, f"{QUERY}: shape .* in the checkpoint", "config.json")
def a_bin_file_of_another_model(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    torch.save({**state, QUERY: torch.ones(3, 64)}, folder / BIN)
