"""Calls `headrace_write_kv`: new keys and values into pages, as numbers or in codes, on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.calls import make
from headrace.kernels.types import TYPES, page_type


class _KVWrite(Structure):
    """`headrace::KVWrite` of kv_write.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "key_pages", "value_pages", "blocks", "slots")),
        *((name, c_int64 * 2) for name in ("key_strides", "value_strides")),
        *((name, c_int64 * 3) for name in ("key_page_strides", "value_page_strides")),
        *((name, c_int32) for name in ("type", "page_type", "num_tokens", "num_kv_heads", "key_width", "value_width")),
        ("num_threads", c_int32),
    )


def write_kv(
    library: ctypes.CDLL,
    keys: Tensor,
    values: Tensor | None,
    *,
    key_pages: Tensor,
    value_pages: Tensor | None,
    value_width: int,
    blocks: Tensor,
    slots: Tensor,
    code_bits: int | None,
) -> None:
    """Writes keys (T, K, D) and values (T, K, V), both of one of `TYPES`, into pages (N, K, S, C); all on the CPU.

    Args:
        key_pages, value_pages: of one of `TYPES`; or bytes, where there are `code_bits`.
        values, value_pages: None where a value is the first `value_width` numbers of its key.
        blocks, slots: (T,) where in the pages each token belongs.
    """
    keys = _with_rows(keys)
    values = None if values is None else _with_rows(values.to(keys.dtype))
    blocks, slots = blocks.contiguous(), slots.contiguous()
    call = _KVWrite(
        keys=keys.data_ptr(),
        values=None if values is None else values.data_ptr(),
        key_pages=key_pages.data_ptr(),
        value_pages=None if value_pages is None else value_pages.data_ptr(),
        blocks=blocks.data_ptr(),
        slots=slots.data_ptr(),
        key_strides=keys.stride()[:2],
        value_strides=(keys if values is None else values).stride()[:2],
        key_page_strides=key_pages.stride()[:3],
        value_page_strides=(key_pages if value_pages is None else value_pages).stride()[:3],
        type=TYPES[keys.dtype],
        page_type=page_type(key_pages, code_bits),
        num_tokens=keys.shape[0],
        num_kv_heads=keys.shape[1],
        key_width=keys.shape[2],
        value_width=value_width,
        num_threads=torch.get_num_threads(),
    )
    make(library.headrace_write_kv, call)


def _with_rows(numbers: Tensor) -> Tensor:
    """The same with a head's numbers side by side."""
    return numbers if numbers.stride(-1) == 1 else numbers.contiguous()
