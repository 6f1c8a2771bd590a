"""Attention as grouped products: chunks of like shape are gathered and multiplied together.

A micro-batch holds decoding rows (one query each) and prefill chunks (hundreds). Chunks are cut into pieces of at most
`PIECE_TOKENS` queries, so that causal work stops at the diagonal; pieces of nearly equal size are padded into one
*tile*, whose keys are gathered from the pages and multiplied in one batched product. On this path all arithmetic is in
fp32: many CPUs multiply bf16 slower than fp32, and torch's own bf16 attention is 4-20 times slower in decode.
Plain torch, so it serves CUDA as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headrace.attention.ragged import Integers, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule

PIECE_TOKENS = 128
MAX_PADDING = 1.25
"""A tile's padded work is at most this many times its real work."""
TILE_BYTES = 8 << 20
"""A tile's gathered keys, and its scores, each stay near this size: they should not leave the last-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    row: int
    query_start: int
    """Among the packed tokens."""
    position: int
    num_queries: int
    first_block: int
    num_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Tile:
    """R pieces, padded to Q queries and L = B * S keys each.

    Attributes:
        queries: (R * Q,) packed tokens; padding repeats a piece's last one.
        kept: (n,) which of the R * Q results are real, or None when all are.
        targets: (n,) the packed tokens that they belong to.
        blocks: (R, B) pool blocks; padding repeats a piece's last one.
        query_positions: (R, Q). key_positions: (R, L); those of padding are beyond every query.
        hidden: masks per rule, shared by the layers of the group.
    """

    num_queries: int
    queries: Tensor
    kept: Tensor | None
    targets: Tensor
    blocks: Tensor
    query_positions: Tensor
    key_positions: Tensor
    hidden: dict[object, Tensor] = field(default_factory=dict)

    def hidden_by(self, rule: AttentionRule) -> Tensor:
        """(R, 1, 1, Q, L) bool, true where a key must not be seen."""
        key = (rule.window, rule.allowed)
        if key not in self.hidden:
            seen = rule.visible(self.query_positions[:, :, None], self.key_positions[:, None, :])
            self.hidden[key] = ~seen[:, None, None]
        return self.hidden[key]


class GroupedAttention:
    """See `AttentionBackend`."""

    def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
        num_heads, num_kv_heads, key_width = query.shape[1], pages.keys.shape[1], query.shape[2]
        output = query.new_empty(len(query), num_heads, pages.value_width)
        for tile in _tiles(layout, rule.num_seen, num_heads, num_kv_heads * key_width, query.device):
            output[tile.targets] = _attend_tile(tile, query, pages, rule)
        return output


def _attend_tile(tile: _Tile, query: Tensor, pages: KVPages, rule: AttentionRule) -> Tensor:
    num_rows, num_kv_heads, width = len(tile.blocks), pages.keys.shape[1], query.shape[2]
    queries = query[tile.queries].float().mul_(rule.scale).view(num_rows, tile.num_queries, num_kv_heads, -1, width)
    queries = queries.permute(0, 2, 3, 1, 4).reshape(num_rows * num_kv_heads, -1, width)
    keys, values = pages.numbers(
        _gather(pages.keys, tile.blocks),
        None if pages.values is None else _gather(pages.values, tile.blocks),
        width,
    )
    scores = torch.bmm(queries, keys.transpose(1, 2))
    scores = scores.view(num_rows, num_kv_heads, -1, tile.num_queries, keys.shape[1])
    weights = rule.probabilities(scores, tile.hidden_by(rule), tile.key_positions)
    results = torch.bmm(weights.reshape(num_rows * num_kv_heads, -1, keys.shape[1]), values)
    results = results.view(num_rows, num_kv_heads, -1, tile.num_queries, pages.value_width)
    results = results.permute(0, 3, 1, 2, 4).reshape(num_rows * tile.num_queries, -1, pages.value_width)
    return (results if tile.kept is None else results[tile.kept]).to(query.dtype)


def _gather(pages: Tensor, blocks: Tensor) -> Tensor:
    """pages (N, K, S, C), blocks (R, B) -> (R * K, B * S, C)."""
    num_kv_heads, block_tokens, num_columns = pages.shape[1:]
    if not pages.is_contiguous():  # records, each with its keys and values
        records = pages.index_select(0, blocks.reshape(-1)).view(*blocks.shape, *pages.shape[1:])
        return records.transpose(1, 2).reshape(len(blocks) * num_kv_heads, -1, num_columns)
    heads = torch.arange(num_kv_heads, device=blocks.device)
    rows = (blocks[:, None, :] * num_kv_heads + heads[None, :, None]).reshape(-1)
    picked = pages.view(-1, block_tokens, num_columns).index_select(0, rows)
    return picked.view(len(blocks) * num_kv_heads, -1, num_columns)


def _tiles(
    layout: RaggedLayout, window: int | None, num_heads: int, key_row_width: int, device: torch.device
) -> list[_Tile]:
    """Returns the layout's tiles, planned once for all layers that attend alike."""
    key = (window or 0, num_heads, key_row_width)
    if key not in layout.plans:
        pieces = sorted(_pieces(layout, window), key=lambda piece: (piece.num_queries, piece.num_blocks), reverse=True)
        layout.plans[key] = [
            _build_tile(group, layout, device) for group in _grouped(pieces, layout, num_heads, key_row_width)
        ]
    plan = layout.plans[key]
    assert isinstance(plan, list)
    return plan


def _pieces(layout: RaggedLayout, window: int | None) -> Iterator[_Piece]:
    for row, chunk_start in enumerate(layout.query_starts):
        for done in range(0, int(layout.lengths[row]), PIECE_TOKENS):
            position = int(layout.starts[row]) + done
            num_queries = min(PIECE_TOKENS, int(layout.lengths[row]) - done)
            first = 0 if window is None else max(0, position - window + 1) // layout.block_tokens
            last = (position + num_queries - 1) // layout.block_tokens
            yield _Piece(
                row=row,
                query_start=int(chunk_start) + done,
                position=position,
                num_queries=num_queries,
                first_block=first,
                num_blocks=last - first + 1,
            )


def _grouped(pieces: list[_Piece], layout: RaggedLayout, num_heads: int, key_row_width: int) -> Iterator[list[_Piece]]:
    """Cuts pieces, sorted by falling size, into groups that pad little and fit the cache."""
    group: list[_Piece] = []
    real = num_queries = num_blocks = 0
    for piece in pieces:
        work = piece.num_queries * piece.num_blocks
        queries, blocks = max(num_queries, piece.num_queries), max(num_blocks, piece.num_blocks)
        count, num_keys = len(group) + 1, blocks * layout.block_tokens
        too_big = 4 * count * num_keys * max(num_heads * queries, key_row_width) > TILE_BYTES
        if group and (too_big or count * queries * blocks > MAX_PADDING * (real + work)):
            yield group
            group, real, queries, blocks = [], 0, piece.num_queries, piece.num_blocks
        group.append(piece)
        real, num_queries, num_blocks = real + work, queries, blocks
    if group:
        yield group


def _build_tile(group: list[_Piece], layout: RaggedLayout, device: torch.device) -> _Tile:
    num_queries = max(piece.num_queries for piece in group)
    num_blocks = max(piece.num_blocks for piece in group)
    columns, lane = np.arange(num_blocks), np.arange(num_queries)
    counts, starts, positions, rows, firsts, blocks = (
        np.array([getattr(piece, name) for piece in group], dtype=np.int64)[:, None]
        for name in ("num_queries", "query_start", "position", "row", "first_block", "num_blocks")
    )
    real = lane < counts
    queries: Integers = starts + np.minimum(lane, counts - 1)
    table = layout.block_table[rows, firsts + np.minimum(columns, blocks - 1)]
    beyond = np.iinfo(np.int64).max // 2
    key_blocks = np.where(columns < blocks, firsts + columns, beyond // layout.block_tokens)
    key_positions = (key_blocks * layout.block_tokens)[:, :, None] + np.arange(layout.block_tokens)

    def tensor(array: Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return _Tile(
        num_queries=num_queries,
        queries=tensor(queries.reshape(-1)),
        kept=None if real.all() else tensor(np.flatnonzero(real)),
        targets=tensor(queries[real]),
        blocks=tensor(table),
        query_positions=tensor(positions + np.minimum(lane, counts - 1)),
        key_positions=tensor(key_positions.reshape(len(group), -1)),
    )
