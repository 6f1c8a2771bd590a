"""Attention of the C++ library: one pass over the pages, for decoding rows and prompts."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import AttentionBackend, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.kernels import attention as kernel
from headrace.kernels.library import library
from headrace.kernels.types import is_known


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
        if rule.allowed is not None or not is_known(query) or not _reads(pages):
            return self._other.attend(query, pages, layout, rule)
        return kernel.attend(
            self._library,
            query.contiguous(),
            pages.keys,
            values,
            rows_of(layout),
            value_width=pages.value_width,
            code_bits=None if pages.codec is None else pages.codec.bits,
            scale=rule.scale,
            window=rule.window,
            softcap=rule.softcap,
            bias=None if rule.slopes is None else _bias(rule.slopes, layout),
            sinks=None if rule.sinks is None else rule.sinks.to("cpu", torch.float32).contiguous(),
        )


def _reads(pages: KVPages) -> bool:
    if pages.codec is not None:
        return pages.keys.device.type == "cpu"
    return is_known(pages.keys) and (pages.values is None or is_known(pages.values))


def rows_of(layout: RaggedLayout) -> kernel.Rows:
    """Returns the rows of a micro-batch as the library reads them."""
    found = layout.plans.get(())
    if found is None:
        found = kernel.Rows(layout.starts, layout.lengths, layout.query_starts, layout.block_table)
        layout.plans[()] = found
    assert isinstance(found, kernel.Rows)
    return found


def _bias(slopes: Tensor, layout: RaggedLayout) -> Tensor:
    """(H,) -> (H, L) fp32: slope * position in the slopes' dtype, for every position of the micro-batch."""
    num_positions = int((layout.starts + layout.lengths).max())
    positions = torch.arange(-(-num_positions // kernel.BIAS_MULTIPLE) * kernel.BIAS_MULTIPLE)
    return (slopes.cpu()[:, None] * positions).float().contiguous()
