"""A checkpoint directory: its configuration and its tensors by name, checked, with no byte of the tensors read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from headrace.checkpoint import formats
from headrace.checkpoint.files import check_place, read_json
from headrace.checkpoint.packed_tensors import PackedEntry, fold_packed, read_scheme
from headrace.checkpoint.reader import RangeReader
from headrace.checkpoint.safetensors_reader import read_header
from headrace.checkpoint.tensors import TensorEntry
from headrace.checkpoint.torch_bin_reader import read_torch_bin
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError

Format = Literal["safetensors", "torch_bin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What lies in a checkpoint directory.

    Attributes:
        path: the directory.
        format: how the tensors are stored.
        entries: every tensor by its name in the checkpoint.
        config: the contents of config.json.
        packed: what those of `entries` are made of that are stored in fewer bits; their own bytes say nothing.
    """

    path: Path
    format: Format
    entries: Mapping[str, TensorEntry] = field(repr=False)
    config: Mapping[str, object] = field(repr=False)
    packed: Mapping[str, PackedEntry] = field(repr=False, default_factory=dict)

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Reads config.json and all headers in `path` and checks them.

        Raises:
            CheckpointNotFoundError: no directory, no config.json, or a weights file that is missing.
            UnsupportedCheckpointError: a format or quantization that this version does not read.
            CorruptCheckpointError: a damaged file.
            UnsafeCheckpointError: a pickle that would run code, or a link that leads out of the folder.
        """
        path = Path(path)
        config = read_config(path)
        scheme = read_scheme(path / "config.json", config)
        weights = formats.find_weights(path)
        entries: dict[str, TensorEntry] = {}
        for file in weights.files:
            for entry in read_header(file) if weights.format == "safetensors" else read_torch_bin(file):
                if entry.name in entries:
                    raise CorruptCheckpointError(
                        f"tensor {entry.name} is in {entries[entry.name].file} and again in {file}; expected it once; "
                        "remove the file that does not belong to this checkpoint"
                    )
                entries[entry.name] = entry
        formats.check_index(weights, entries)
        packed: dict[str, PackedEntry] = {}
        if scheme is not None:
            entries, packed = fold_packed(entries, scheme)
        formats.check_tensors(entries)
        return cls(path=path, format=weights.format, entries=entries, config=config, packed=packed)

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors as they are stored."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def read_into(self, entry: TensorEntry, buffer: memoryview) -> None:
        """Fills `buffer` (exactly `entry.num_bytes` writable bytes) with the tensor's stored bytes."""
        with RangeReader() as reader:
            reader.read_into(entry.file, entry.offset, buffer)


def read_config(path: Path) -> dict[str, object]:
    """Returns the contents of `path`/config.json.

    Raises:
        CheckpointNotFoundError: no such directory, or no config.json in it.
        CorruptCheckpointError: config.json is no JSON object.
        UnsafeCheckpointError: config.json is a link that leads out of the folder.
    """
    formats.check_is_directory(path)
    file = path / "config.json"
    if not os.path.lexists(file):
        raise CheckpointNotFoundError(f"{path}: no config.json; {formats.describe_without_config(path)}")
    check_place(file, path)
    return read_json(file)
