"""Writes safetensors files of tensors that are in memory, or come one after another."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from headrace.checkpoint.safetensors_writer import TensorShape, header_bytes
from headrace.errors import DiskSpaceError


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors of host memory to a safetensors file, in their order; see `write_safetensors`."""
    shapes = [tensor_shape(name, tensor) for name, tensor in tensors.items()]
    write_safetensors(file, shapes, tensors.values(), metadata)


def write_safetensors(
    file: Path,
    shapes: Sequence[TensorShape],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors, of `shapes`, as they come; the file has its name only once it is whole.

    Raises:
        DiskSpaceError: the disk is full, or the folder may not be written.
    """
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(temporary) as stream:
            stream.write(header_bytes(shapes, metadata))
            for tensor in tensors:
                flat = tensor.detach().contiguous().view(-1)
                if flat.numel():
                    stream.write(flat.view(torch.uint8).numpy().data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(file)
    except OSError as error:
        raise _cannot_write(file.parent, error) from error
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def tensor_shape(name: str, tensor: torch.Tensor) -> TensorShape:
    """Returns what a safetensors header says of a tensor."""
    return TensorShape(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


@contextmanager
def _locked(file: Path) -> Iterator[BinaryIO]:
    """Opens a new file and locks it, so that `_remove_leftovers` of another process leaves it alone."""
    while True:
        with file.open("wb") as stream:
            with suppress(OSError):  # a file system without locks; nobody can lock it for removal either
                fcntl.flock(stream, fcntl.LOCK_EX)
            if os.fstat(stream.fileno()).st_nlink:  # otherwise it was removed before it was locked
                yield stream
                return


def _cannot_write(folder: Path, error: OSError) -> DiskSpaceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there" if full else "make it writable"
    return DiskSpaceError(f"{folder}: cannot write: {error.strerror}; {remedy}, or name another with --disk FOLDER")
