"""A fault: one way to break a good checkpoint folder, and what whoever opens it has to be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from headrace.errors import HeadraceError
from tests.tiny_models import make_tiny_model, save_tiny, write_tokenizer

Base = Literal["single", "sharded", "bin"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
QUERY = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
VOCAB_SIZE = 97
AGAIN = r"download|copy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is broken, and how the loader has to say so.

    Attributes:
        base: the good folder that it starts from.
        apply: breaks the folder that it is given.
        error: the exact class of the error.
        file: the name of the file that the message names.
        says: what is wrong, as a regular expression.
        remedy: what to do about it, as a regular expression.
    """

    name: str
    base: Base
    apply: Callable[[Path], None]
    error: type[HeadraceError]
    file: str
    says: str
    remedy: str


class Corpus(dict[str, Fault]):
    """Faults by name; a function becomes one by decoration."""

    def fault(
        self, base: Base, error: type[HeadraceError], file: str, says: str, remedy: str = AGAIN
    ) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
        """Returns a decorator that adds the function, which breaks a folder, under its name in words."""

        def add(apply: Callable[[Path], None]) -> Callable[[Path], None]:
            name = apply.__name__.replace("_", " ")
            assert name not in self, f"two faults are called {name!r}"
            self[name] = Fault(name=name, base=base, apply=apply, error=error, file=file, says=says, remedy=remedy)
            return apply

        return add


def save_good(base: Base, folder: Path) -> None:
    """Saves the good checkpoint that faults of `base` start from: a tiny Llama and a tokenizer of as many words."""
    if base == "bin":
        save_tiny("llama", folder)
        (folder / WEIGHTS).unlink()
        torch.save(make_tiny_model("llama").state_dict(), folder / BIN)
    else:
        save_tiny("llama", folder, max_shard_size="40KB" if base == "sharded" else "5GB")
    write_tokenizer(folder, VOCAB_SIZE)


def read_header(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Returns the header of a good safetensors file and the bytes behind it."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file: Path, header: object, data: bytes) -> None:
    """Writes a safetensors file with `header`, given as bytes or as what is to become JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change_entry(file: Path, tensor: str, **values: object) -> None:
    """Changes what a safetensors header says of one tensor."""
    header, data = read_header(file)
    header[tensor].update(values)
    write_header(file, header, data)


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Saves a good safetensors file again with other tensors."""
    state = load_file(file)
    change(state)
    save_file(state, file)


def change_json(file: Path, **values: object) -> None:
    """Sets `values` in a file with a JSON object."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}))


def keep_bytes(file: Path, num_bytes: int) -> None:
    """Cuts a file off, from its end where `num_bytes` is negative."""
    with file.open("r+b") as stream:
        stream.truncate(num_bytes if num_bytes >= 0 else file.stat().st_size + num_bytes)


def flip_bit(file: Path, position: int, bit: int = 0) -> None:
    """Flips one bit of a file."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def shard_of(folder: Path, tensor: str) -> Path:
    """Returns the shard that the index names for a tensor."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return folder / str(index["weight_map"][tensor])


def change_index(folder: Path, tensor: str, file_name: str) -> None:
    """Has the index name another file for one tensor."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"][tensor] = file_name
    (folder / INDEX).write_text(json.dumps(index))
