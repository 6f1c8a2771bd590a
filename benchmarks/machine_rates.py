"""What this machine does right now, without any engine: a disk's rate, and the rate of a model's matrix products.

Run by `beyond_memory` in a process of its own, just before and just after what is held against it.
"""

from __future__ import annotations

import mmap
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.llama_shape import LlamaShape
from benchmarks.processes import Figures, serve
from benchmarks.weight_files import drop_from_cache, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUM_THREADS = 2
BLOCK_BYTES = 8 * 1024**2
_LONGEST_SECONDS = 4.0
_LEAST_ROUNDS, _LEAST_SECONDS = 3, 1.0
_PAGE_BYTES = 4096


def measure(request: Figures) -> Figures:
    """Returns `disk` in bytes per second, and `matrix` in operations per second by number of tokens."""
    start = time.time()
    disk = disk_rate(weight_files(Path(request["model"])))
    shape = LlamaShape(**request["shape"])
    sizes = list(shape.layer_matrices().values())
    rate = partial(packed_rate, codec=request["quantization"]) if request["quantization"] != "none" else matrix_rate
    matrix = {tokens: rate(sizes, tokens, request["dtype"]) for tokens in request["tokens"]}
    return {"started": start, "disk": disk, "matrix": matrix}


def disk_rate(files: Sequence[Path]) -> float:
    """Reads `files` past the file cache, for some seconds at most, and returns bytes per second."""
    blocks: queue.SimpleQueue[tuple[Path, int]] = queue.SimpleQueue()
    for file in files:
        drop_from_cache(file)  # for file systems without direct reads
        for offset in range(0, file.stat().st_size, BLOCK_BYTES):
            blocks.put((file, offset))
    counts = [0] * NUM_THREADS
    start = time.perf_counter()

    def work(number: int) -> None:
        buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES))
        opened: dict[Path, int] = {}
        while time.perf_counter() - start < _LONGEST_SECONDS:
            try:
                file, offset = blocks.get_nowait()
            except queue.Empty:
                break
            if file not in opened:
                opened[file] = _open(file)
            done = 0
            # A count that is no multiple of a page is the file's end; no direct read may begin there.
            while done < BLOCK_BYTES and done % _PAGE_BYTES == 0:
                count = os.preadv(opened[file], [buffer[done:]], offset + done)
                if count == 0:
                    break
                done += count
            counts[number] += done
        for descriptor in opened.values():
            os.close(descriptor)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system without direct reads
        return os.open(file, os.O_RDONLY)


def matrix_rate(sizes: Sequence[tuple[int, int]], num_tokens: int, dtype: str) -> float:
    """Returns operations per second over all matrices of a layer: the median of some rounds, the better of two dtypes.

    Of `dtype` and float32, since CPUs without instructions for half precision multiply it faster once it has been
    widened, which the rate leaves out.
    """
    import torch

    seconds = [
        _seconds(sizes, num_tokens, made, lambda weight: partial(torch.nn.functional.linear, weight=weight))
        for made in {getattr(torch, dtype), torch.float32}
    ]
    return _operations(sizes, num_tokens) / min(seconds)


def packed_rate(sizes: Sequence[tuple[int, int]], num_tokens: int, dtype: str, codec: str) -> float:
    """The same with packed weights, by Headrace's own products, of which torch has none to compare with."""
    import torch

    from headrace.compression.packed_linear import product_with
    from headrace.compression.weight_codecs import weight_codec

    product = partial(product_with, codec=weight_codec(codec))
    return _operations(sizes, num_tokens) / _seconds(sizes, num_tokens, getattr(torch, dtype), product)


def _operations(sizes: Sequence[tuple[int, int]], num_tokens: int) -> float:
    return 2.0 * num_tokens * sum(outputs * inputs for outputs, inputs in sizes)


def _seconds(
    sizes: Sequence[tuple[int, int]],
    num_tokens: int,
    dtype: torch.dtype,
    product: Callable[[Tensor], Callable[[Tensor], Tensor]],
) -> float:
    """Returns what all products take, of tokens and weights of `dtype`."""
    import torch

    with torch.inference_mode():
        products = [product(torch.empty(size, dtype=dtype).normal_(std=0.02)) for size in sizes]
        tokens = {inputs: torch.randn(num_tokens, inputs).to(dtype) for _, inputs in sizes}
        times: list[float] = []
        while len(times) <= _LEAST_ROUNDS or sum(times) < _LEAST_SECONDS:
            start = time.perf_counter()
            for (_, inputs), multiply in zip(sizes, products, strict=True):
                multiply(tokens[inputs])
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one chooses kernels


if __name__ == "__main__":
    serve(measure)
