"""A model whose KV is the tokens themselves, so that a wrong block shows as a wrong token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.kv_cache.groups import KVGroup
from headrace.scheduler.sweep import BlockCopy, Chunk, Sweep

Prefix = tuple[int, ...]
GARBAGE: Prefix = (-7,)

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
CACHES: dict[str, tuple[KVGroup, ...]] = {
    "full": (FULL,),
    "sliding": (KVGroup(group_id=0, layers=(0,), kind="sliding", window=6),),
    "state": (KVGroup(group_id=0, layers=(0,), kind="state"),),
    "full and sliding": (FULL, KVGroup(group_id=1, layers=(1,), kind="sliding", window=5)),
    "full and state": (FULL, KVGroup(group_id=1, layers=(1,), kind="state")),
    "two full": (FULL, KVGroup(group_id=1, layers=(1,), kind="full")),
    "all": (
        FULL,
        KVGroup(group_id=1, layers=(1,), kind="sliding", window=7),
        KVGroup(group_id=2, layers=(2,), kind="state"),
    ),
}


class ToyModel:
    """Follows a sweep as an executor does. A slot holds all tokens up to its position, as real KV depends on them."""

    def __init__(self, groups: Sequence[KVGroup], num_blocks: Sequence[int], block_tokens: int) -> None:
        self._groups = groups
        self._block_tokens = block_tokens
        self._slots = [[[GARBAGE] * block_tokens for _ in range(number)] for number in num_blocks]
        self._below: dict[tuple[int, int], list[Prefix]] = {}

    def run(self, sweep: Sweep, tokens: Mapping[int, Sequence[int]]) -> None:
        """Computes every chunk and compares all that it reads with the tokens of its sequence."""
        for move in sweep.moves_down:
            self._below[move.group, move.place] = list(self._slots[move.group][move.block])
        for move in sweep.moves_up:
            self._slots[move.group][move.block] = list(self._below[move.group, move.place])
        self._copy(sweep.copies)
        for micro_batch in sweep.micro_batches:
            for chunk in micro_batch.chunks:
                known = (*tokens[chunk.sequence_id], *chunk.guess)
                assert chunk.token_ids == known[chunk.start : chunk.stop]
                for group, table in zip(self._groups, chunk.block_tables, strict=True):
                    self._compute(group, table, chunk, known)

    def fail(self, sweep: Sweep) -> None:
        """Leaves garbage wherever the sweep may write."""
        for move in sweep.moves_down:
            self._below[move.group, move.place] = [GARBAGE] * self._block_tokens
        for move in sweep.moves_up:
            self._slots[move.group][move.block] = [GARBAGE] * self._block_tokens
        self._copy(sweep.copies)
        for micro_batch in sweep.micro_batches:
            for chunk in micro_batch.chunks:
                for group, table in zip(self._groups, chunk.block_tables, strict=True):
                    if group.kind == "state":
                        self._slots[group.group_id][table[1]][0] = GARBAGE
                    else:
                        self._write(group, table, chunk, [GARBAGE] * chunk.num_tokens)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            source, target = (self._slots[copy.group][block] for block in (copy.source, copy.target))
            target[: copy.num_tokens] = source[: copy.num_tokens]

    def _compute(self, group: KVGroup, table: Sequence[int], chunk: Chunk, known: Prefix) -> None:
        if group.kind == "state":
            source, target = table
            before = () if source == -1 else self._slots[group.group_id][source][0]
            assert before == known[: chunk.start], f"group {group.group_id}: wrong state in slot {source}"
            self._slots[group.group_id][target][0] = before + chunk.token_ids
            return
        self._write(group, table, chunk, [known[: position + 1] for position in range(chunk.start, chunk.stop)])
        first = 0 if group.window is None else max(0, chunk.start - group.window + 1)
        for position in range(first, chunk.stop):
            block = table[position // self._block_tokens]
            assert block != -1, f"group {group.group_id}: position {position} is gone"
            found = self._slots[group.group_id][block][position % self._block_tokens]
            assert found == known[: position + 1], f"group {group.group_id}: {found} at position {position} of {known}"

    def _write(self, group: KVGroup, table: Sequence[int], chunk: Chunk, values: Sequence[Prefix]) -> None:
        for position, value in zip(range(chunk.start, chunk.stop), values, strict=True):
            block = table[position // self._block_tokens]
            self._slots[group.group_id][block][position % self._block_tokens] = value
