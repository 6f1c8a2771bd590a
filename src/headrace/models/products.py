"""Which products a model's linear layers run on a CPU: the C++ library's, torch's, or torch's with widened weights."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headrace.kernels.library import library
from headrace.kernels.linear import linear
from headrace.kernels.types import TYPES
from headrace.models.choices import is_slow
from headrace.units import MIB

_LEAST_TOKENS = 4
"""Fewer do not pay for widening: this and what follows was measured on a Xeon with AVX-512 but no bf16 instructions."""
_FEW_TOKENS = 64
_FEW_BLOCK_NUMBERS, _FEW_BLOCK_ROWS = 4 * MIB // 4, 256
"""Widened at a time where tokens are few and the block, not the products, takes longest: what stays in caches. With
300 to 600 rows torch's products of so few tokens are half as fast."""
_BLOCK_NUMBERS = 16 * MIB // 4
"""The same where tokens are many, and every block is two more meetings of all threads."""


def products(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Returns what to enter around a model's forward for the fastest products of `dtype` on `device`."""
    if dtype is not torch.float32 and not is_slow(dtype, device):
        return nullcontext()  # torch has instructions for them
    found = library() if device.type == "cpu" else None
    if found is not None:
        return LibraryProducts(found)
    return WideProducts() if is_slow(dtype, device) else nullcontext()


class Products(TorchFunctionMode):
    """While entered, `linear` is one of its own."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if function is torch.nn.functional.linear:
            return self.linear(*args, **(kwargs or {}))  # type: ignore[arg-type]
        return function(*args, **(kwargs or {}))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # torch's name
        """Returns `input` (..., columns) by the transpose of `weight` (rows, columns), plus `bias` (rows)."""
        raise AssertionError("a subclass says how")


class LibraryProducts(Products):
    """The C++ library's: summed in fp32 in the order of the columns, so that no token depends on those beside it."""

    def __init__(self, found: ctypes.CDLL) -> None:
        super().__init__()
        self._library = found

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not (_is_known(input) and _is_known(weight)) or input.dtype is not weight.dtype or weight.dim() != 2:
            return torch.nn.functional.linear(input, weight, bias)
        tokens = input.reshape(-1, weight.shape[1]).contiguous()
        output = linear(self._library, tokens, weight, bias)
        return output.view(*input.shape[:-1], len(weight))


class WideProducts(Products):
    """Torch's in fp32, with half-precision weights widened block by block where tokens are enough for it.

    Products are summed in float32 and rounded once, as by a CPU that has the instructions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._block = torch.empty(0)

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        num_tokens = input.numel() // weight.shape[-1]
        if weight.dtype not in (torch.bfloat16, torch.float16) or num_tokens < _LEAST_TOKENS:
            return torch.nn.functional.linear(input, weight, bias)
        tokens = input.reshape(num_tokens, weight.shape[1]).float()
        output = input.new_empty(num_tokens, len(weight))
        step = _block_rows(num_tokens, weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            output[:, rows] = torch.nn.functional.linear(
                tokens, self._widen(weight[rows]), None if bias is None else bias[rows].float()
            )
        return output.view(*input.shape[:-1], len(weight))

    def _widen(self, weight: Tensor) -> Tensor:
        """Returns `weight` in float32, in memory that the next call uses again."""
        if self._block.numel() < weight.numel():
            self._block = torch.empty(weight.numel())
        return self._block[: weight.numel()].view(weight.shape).copy_(weight)


def _block_rows(num_tokens: int, num_columns: int) -> int:
    """Of a weight, to be widened at a time."""
    if num_tokens < _FEW_TOKENS:
        return max(1, min(_FEW_BLOCK_ROWS, _FEW_BLOCK_NUMBERS // num_columns))
    return max(1, _BLOCK_NUMBERS // num_columns)


def _is_known(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in TYPES and tensor.stride(-1) == 1
