"""Calls `headrace_attend`: attention over paged keys and values on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.kernels.calls import make
from headrace.kernels.types import TYPES, page_type

BIAS_MULTIPLE = 32
"""The library reads a bias in whole tiles of so many keys."""


class Attention(Structure):
    """`headrace::Attention` of attention.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "output", "keys", "values")),
        *((name, c_int64 * 3) for name in ("key_strides", "value_strides")),
        *((name, c_void_p) for name in ("starts", "lengths", "query_starts", "block_table", "bias", "sinks")),
        *((name, c_int64) for name in ("table_width", "bias_stride")),
        *((name, c_int32) for name in ("query_type", "kv_type", "num_rows", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("key_width", "value_width", "block_tokens", "key_border", "window")),
        ("num_threads", c_int32),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class Rows:
    """Where the rows of a micro-batch are, as the library reads it: made once for all layers."""

    def __init__(
        self,
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        query_starts: npt.NDArray[np.int64],
        block_table: npt.NDArray[np.int64],
    ) -> None:
        """Args:
        starts, lengths, query_starts: (R,) position of a row's first token, number of its tokens, their place in T.
        block_table: (R, B) block of every S positions; -1 where no token is seen.
        """
        names = ("starts", "lengths", "query_starts", "block_table")
        self._arrays = [np.ascontiguousarray(each, np.int64) for each in (starts, lengths, query_starts, block_table)]
        self.fields = {name: array.ctypes.data for name, array in zip(names, self._arrays, strict=True)}
        self.fields |= {"table_width": block_table.shape[1], "num_rows": len(starts)}

    def put_into(self, call: Attention) -> None:
        """Has a call attend for these rows, which have as many tokens together as those it was made for."""
        for name, number in self.fields.items():
            setattr(call, name, number)


def attend(
    library: ctypes.CDLL,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Rows,
    *,
    value_width: int,
    code_bits: int | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    bias: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Returns (T, H, V) in the query's dtype; every tensor is on the CPU.

    Args:
        query: (T, H, D), contiguous, of one of `TYPES`.
        keys, values: (N, K, S, D) and (N, K, S, at least V) of one of `TYPES`, each slot's numbers side by side; the
            same tensor where a value is the first part of its key.
        code_bits: each slot has a record with codes of so many bits instead; where a value is the first part of its
            key, that is a record of V numbers, and one of the others.
        bias: (H, L) fp32, added to the scores by key position; L a multiple of `BIAS_MULTIPLE` beyond every position.
        sinks: (H,) fp32.
    """
    output = query.new_empty(*query.shape[:2], value_width)
    key_width = query.shape[2]
    call = Attention(
        query=query.data_ptr(),
        output=output.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        key_strides=keys.stride()[:3],
        value_strides=values.stride()[:3],
        bias=None if bias is None else bias.data_ptr(),
        sinks=None if sinks is None else sinks.data_ptr(),
        bias_stride=0 if bias is None else bias.stride(0),
        query_type=TYPES[query.dtype],
        kv_type=page_type(keys, code_bits),
        num_heads=query.shape[1],
        num_kv_heads=keys.shape[1],
        key_width=key_width,
        value_width=value_width,
        block_tokens=keys.shape[2],
        key_border=value_width if keys is values else key_width,
        window=window or 0,
        num_threads=torch.get_num_threads(),
        scale=scale,
        softcap=softcap or 0.0,
        **rows.fields,
    )
    make(library.headrace_attend, call)
    return output
