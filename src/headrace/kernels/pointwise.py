"""Calls what pointwise.cpp does on a CPU: what lies between matrix products, in one pass each."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

import torch
from torch import Tensor

from headrace.kernels.calls import make
from headrace.kernels.types import TYPES


class NormForm(IntEnum):
    """How a normalised number becomes a result; `headrace::NormForm` of pointwise.h."""

    WEIGHT_TIMES_ROUNDED = 0
    """The number is rounded to the dtype before the weight is multiplied with it."""
    WEIGHT_TIMES_NUMBER = 1
    ONE_PLUS_WEIGHT = 2


class Activation(IntEnum):
    """`headrace::Activation` of pointwise.h."""

    SILU = 0
    GELU_TANH = 1


class _RmsNorm(Structure):
    """`headrace::RmsNorm` of pointwise.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "output")),
        *((name, c_int64) for name in ("num_outer", "num_inner", "width", "outer_stride", "inner_stride")),
        *((name, c_int32) for name in ("type", "form", "num_threads")),
        ("epsilon", c_float),
    )


class _Gate(Structure):
    """`headrace::Gate` of pointwise.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("gate", "up", "output")),
        ("count", c_int64),
        *((name, c_int32) for name in ("type", "activation", "num_threads")),
    )


class _Rotation(Structure):
    """`headrace::Rotation` of pointwise.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "cosines", "sines", "output")),
        *((name, c_int64) for name in ("token_stride", "head_stride", "num_tokens", "num_heads", "width")),
        *((name, c_int32) for name in ("type", "num_threads")),
    )


class _Sum(Structure):
    """`headrace::Sum` of pointwise.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("first", "second", "output")),
        ("count", c_int64),
        *((name, c_int32) for name in ("type", "num_threads")),
    )


def rms_norm(library: ctypes.CDLL, numbers: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> Tensor:
    """Returns `numbers` (..., W), of one of `TYPES`, divided by their root mean square, by `weight` (W).

    Zhang and Sennrich, 2019. Sums are taken in fp32.
    """
    weight, rows = weight.contiguous(), _row_places(numbers)
    if rows is None:
        numbers = numbers.contiguous()
        rows = _row_places(numbers)
        assert rows is not None, "rows that lie one behind the other are one dimension"
    output = numbers.new_empty(numbers.shape)
    call = _RmsNorm(
        input=numbers.data_ptr(),
        weight=weight.data_ptr(),
        output=output.data_ptr(),
        num_outer=rows[0][0],
        num_inner=rows[1][0],
        width=numbers.shape[-1],
        outer_stride=rows[0][1],
        inner_stride=rows[1][1],
        type=TYPES[numbers.dtype],
        form=form,
        num_threads=torch.get_num_threads(),
        epsilon=epsilon,
    )
    make(library.headrace_rms_norm, call)
    return output


def _row_places(numbers: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns two dimensions, as size and stride, that the rows of `numbers` lie in; None where they take more."""
    *sizes, width = numbers.shape
    *strides, step = numbers.stride()
    if numbers.is_contiguous():
        return (1, 0), (numbers.numel() // width, width)
    outer = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1]
    if step != 1 or len(outer) > 2:
        return None
    first, second = [(1, 0), (1, 0), *outer][-2:]
    return first, second


def gated(library: ctypes.CDLL, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Returns activation(gate) * up, both of one shape and of one of `TYPES`.

    The activation is rounded to the dtype, as it is where it is a tensor of its own.
    """
    gate, up = gate.contiguous(), up.contiguous()
    output = torch.empty_like(up)
    call = _Gate(
        gate=gate.data_ptr(),
        up=up.data_ptr(),
        output=output.data_ptr(),
        count=up.numel(),
        type=TYPES[up.dtype],
        activation=activation,
        num_threads=torch.get_num_threads(),
    )
    make(library.headrace_gate, call)
    return output


def rotated(library: ctypes.CDLL, numbers: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Returns `numbers` (T, H, W), turned by angles of (T, W); all of one of `TYPES`.

    Su et al., 2021, in the order of GPT-NeoX: number i is turned with number i + W / 2. Each product and sum is rounded
    to the dtype. Numbers of one head of a token lie next to each other.
    """
    cosines, sines = cosines.contiguous(), sines.contiguous()
    num_tokens, num_heads, width = numbers.shape
    output = numbers.new_empty(numbers.shape)
    call = _Rotation(
        input=numbers.data_ptr(),
        cosines=cosines.data_ptr(),
        sines=sines.data_ptr(),
        output=output.data_ptr(),
        token_stride=numbers.stride(0),
        head_stride=numbers.stride(1),
        num_tokens=num_tokens,
        num_heads=num_heads,
        width=width,
        type=TYPES[numbers.dtype],
        num_threads=torch.get_num_threads(),
    )
    make(library.headrace_rotate, call)
    return output


def added(library: ctypes.CDLL, first: Tensor, second: Tensor) -> Tensor:
    """Returns first + second, both contiguous, of one shape and of one of `TYPES`."""
    output = torch.empty_like(first)
    call = _Sum(
        first=first.data_ptr(),
        second=second.data_ptr(),
        output=output.data_ptr(),
        count=first.numel(),
        type=TYPES[first.dtype],
        num_threads=torch.get_num_threads(),
    )
    make(library.headrace_add, call)
    return output
