"""Attention of the C++ library: one pass over the pages, for decoding rows and prompts."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import AttentionBackend, Integers, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import KVCodec
from headrace.kernels import attention as kernel
from headrace.kernels.library import library
from headrace.kernels.types import TYPES


def best_attention() -> AttentionBackend:
    """Returns the library's attention where there is a library, else plain torch's."""
    found = library()
    return GroupedAttention() if found is None else PagedAttention(found)


class PagedAttention:
    """See `AttentionBackend`. What the library does not know is left to plain torch: GPUs, masks of a model's own."""

    def __init__(self, found: ctypes.CDLL) -> None:
        self._library = found
        self._other = GroupedAttention()

    def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
        values = pages.keys if pages.values is None else pages.values
        if rule.allowed is not None or not _is_known(query) or not _is_known(pages.keys, values, codec=pages.codec):
            return self._other.attend(query, pages, layout, rule)
        return kernel.attend(
            self._library,
            query.contiguous(),
            pages.keys,
            values,
            value_width=pages.value_width,
            code_bits=None if pages.codec is None else pages.codec.bits,
            starts=_whole(layout.starts),
            lengths=_whole(layout.lengths),
            query_starts=_whole(layout.query_starts),
            block_table=_whole(layout.block_table),
            scale=rule.scale,
            window=rule.window,
            softcap=rule.softcap,
            bias=None if rule.slopes is None else _bias(rule.slopes, layout),
            sinks=None if rule.sinks is None else rule.sinks.to("cpu", torch.float32).contiguous(),
        )


def _is_known(*tensors: Tensor, codec: KVCodec | None = None) -> bool:
    """Whether the library reads them: numbers of its types, or records of `codec`."""
    return all(
        tensor.device.type == "cpu" and (tensor.dtype in TYPES or codec is not None) and tensor.stride(-1) == 1
        for tensor in tensors
    )


def _whole(numbers: Integers) -> Integers:
    return np.ascontiguousarray(numbers, dtype=np.int64)


def _bias(slopes: Tensor, layout: RaggedLayout) -> Tensor:
    """(H,) -> (H, L) fp32: slope * position in the slopes' dtype, for every position of the micro-batch."""
    num_positions = int((layout.starts + layout.lengths).max())
    positions = torch.arange(-(-num_positions // kernel.BIAS_MULTIPLE) * kernel.BIAS_MULTIPLE)
    return (slopes.cpu()[:, None] * positions).float().contiguous()
