"""Which products a model's linear layers run on a CPU: the C++ library's, torch's, or torch's with widened weights."""

from __future__ import annotations

import ast
import ctypes
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode

from headrace.compression.packed_linear import PackedLinear
from headrace.kernels.library import library
from headrace.kernels.linear import linear
from headrace.kernels.types import is_known
from headrace.models.choices import is_slow
from headrace.models.shared_inputs import share_inputs
from headrace.units import MIB

_LEAST_TOKENS = 4
"""Fewer do not pay for widening: this and what follows was measured on a Xeon with AVX-512 but no bf16 instructions."""
_FEW_TOKENS = 64
_FEW_BLOCK_NUMBERS, _FEW_BLOCK_ROWS = 4 * MIB // 4, 256
"""Widened at a time where tokens are few and the block, not the products, takes longest: what stays in caches. With
300 to 600 rows torch's products of so few tokens are half as fast."""
_BLOCK_NUMBERS = 16 * MIB // 4
"""The same where tokens are many, and every block is two more meetings of all threads."""


_CALL_OF_LINEAR = re.compile(r"\b(?:functional|F)\.linear\(")
_OTHER_PRODUCT = re.compile(r"\baddmm\(|\bmatmul\(| @ ")
_MATMUL = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__})


def products(
    dtype: torch.dtype, device: torch.device, modules: Sequence[nn.Module] | None = None
) -> AbstractContextManager[object]:
    """Returns what to enter around a model's forward for the fastest products of `dtype` on `device`.

    Args:
        modules: the model's, which may be given a `forward` of their own; None where `linear` is called directly.
    """
    if (found := library_for(dtype, device)) is not None:
        own = LibraryProducts(found)
        return own if modules is None else own.put_into(modules)
    return WideProducts() if is_slow(dtype, device) else nullcontext()


def library_for(dtype: torch.dtype, device: torch.device) -> ctypes.CDLL | None:
    """Returns the library where its products are used.

    Torch's are where a CPU has instructions for `dtype` that the library has not: tiles of bfloat16 (AMX), and float16.
    """
    if device.type != "cpu":
        return None
    is_torchs = torch.cpu._is_amx_tile_supported() if dtype is torch.bfloat16 else dtype is torch.float16
    return None if is_torchs and not is_slow(dtype, device) else library()


class Products(TorchFunctionMode):
    """While entered, `linear` is one of its own, and so are products with a matrix by other names.

    These are `@`, as in Falcon's layers and gpt-oss's experts, and `addmm`, as in GPT-2's.
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        match args:
            case _ if function is torch.nn.functional.linear:
                return self.linear(*args, **(kwargs or {}))  # type: ignore[arg-type]
            case Tensor() as input, Tensor() as matrix if function in _MATMUL and _is_matrix(matrix) and not kwargs:
                return self.linear(input, matrix.t())
            case Tensor() as bias, Tensor() as input, Tensor() as matrix if (
                function is torch.addmm and bias.dim() == 1 and _is_matrix(matrix) and not kwargs
            ):
                return self.linear(input, matrix.t(), bias)
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
        (output,) = self._multiply(input, [(weight, bias)])
        return output

    def put_into(self, modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
        """Gives linear layers a `forward` with these products.

        Returns:
            What is still to be entered: a mode, which sees every function of torch and takes time for it, only where
            some module multiplies itself.
        """
        others = set()
        for module in modules:
            if type(module) is nn.Linear:
                module.forward = partial(self._forward, module)  # type: ignore[method-assign]
            elif not isinstance(module, PackedLinear):
                others.add((type(module), bool(module._parameters)))
        share_inputs(modules, nn.Linear, self._multiply_layers, lambda layer: (layer.in_features, layer.weight.dtype))
        return self if any(_multiplies(*other) for other in others) else nullcontext()

    def _forward(self, layer: nn.Linear, input: Tensor) -> Tensor:  # torch's name
        (output,) = self._multiply_layers(input, [layer])
        return output

    def _multiply_layers(self, input: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
        with DisableTorchFunction():
            return self._multiply(input, [(layer.weight, layer.bias) for layer in layers])

    def _multiply(self, input: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Returns the products of `input` (..., columns) with each weight (rows, columns) and its bias (rows)."""
        if not is_known(input) or any(not _fits(input, weight, weights[0][0]) for weight, _ in weights):
            return [torch.nn.functional.linear(input, *weight) for weight in weights]
        return linear(self._library, input, weights)


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


def _fits(input: Tensor, weight: Tensor, first: Tensor) -> bool:
    """Whether the library multiplies a weight in one call with the first."""
    if not is_known(weight) or weight.dtype is not input.dtype or weight.dim() != 2:
        return False
    return weight.stride(1) == 1 if first.stride(1) == 1 else weight.stride(0) == 1


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.is_floating_point()


def _multiplies(kind: type[nn.Module], has_parameters: bool) -> bool:
    """Whether the code of a module's class has products with weights; so where it cannot be read."""
    try:
        code = _without_strings(inspect.getsource(kind))
    except (OSError, TypeError, SyntaxError):
        return True
    return _CALL_OF_LINEAR.search(code) is not None or (has_parameters and _OTHER_PRODUCT.search(code) is not None)


def _without_strings(code: str) -> str:
    """Returns code without comments and strings: nn.Embedding documents itself with an example of `@`."""
    tree = ast.parse(textwrap.dedent(code))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)
