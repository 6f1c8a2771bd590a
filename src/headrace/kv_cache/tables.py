"""The blocks of one sequence in one group: a table for keys and values, two slots for a state.

    committed                        | this sweep
    [ 7 ][ 3 ][ 9 ][ 4 · · · · ]     | [ 1 ][ 6 ]        full
    [-1 ][-1 ][ 2 ][ 8 · · · · ]     | [ 5 ][ 0 ]        sliding: dead blocks are -1, indices stay absolute
    current 3                        | targets 5, 8      state: every chunk reads one slot and writes the next

`commit` makes what this sweep added permanent, `abandon` takes it back, `free` releases everything, last block first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.prefix_tree import ABSENT


class Table(Protocol):
    """What the manager asks of a sequence's blocks in a group."""

    pool: BlockPool

    def num_missing(self, stop: int) -> int:
        """Returns the number of blocks that computing up to position `stop` allocates."""

    def num_missing_to_stay(self, num_tokens: int) -> int:
        """Returns the number of blocks without which a sequence of `num_tokens` would soon be short of one."""

    def reach(self, limit: int) -> int:
        """Returns the last position up to `limit` that the blocks available now allow."""

    def extend(self, stop: int) -> None:
        """Allocates what `num_missing` says."""

    def view(self) -> tuple[int, ...]:
        """Returns the table as the chunk that was extended last needs it."""

    def commit(self, num_computed: int) -> None: ...

    def abandon(self) -> None: ...

    def free(self) -> None: ...

    def used_blocks(self) -> Iterator[int]:
        """Yields each block once for every use this table makes of it."""


class FullTable:
    """Block of position p at index p // block_tokens."""

    __slots__ = ("_block_tokens", "_blocks", "_num_committed", "_num_dead", "_view", "pool")

    def __init__(self, pool: BlockPool, block_tokens: int, shared: Sequence[int]) -> None:
        """Begins with blocks that other sequences computed, acquired by the caller; leading ones may be ABSENT."""
        self.pool = pool
        self._block_tokens = block_tokens
        self._blocks = list(shared)
        self._num_committed = len(shared)
        self._num_dead = shared.count(ABSENT)
        self._view: tuple[int, ...] | None = None

    def num_missing(self, stop: int) -> int:
        return max(0, -(-stop // self._block_tokens) - len(self._blocks))

    def num_missing_to_stay(self, num_tokens: int) -> int:
        return self.num_missing(num_tokens)

    def reach(self, limit: int) -> int:
        num_blocks = len(self._blocks)
        if limit <= num_blocks * self._block_tokens:
            return limit
        return min(limit, (num_blocks + self.pool.num_available) * self._block_tokens)

    def extend(self, stop: int) -> None:
        while len(self._blocks) * self._block_tokens < stop:
            self._blocks.append(self.pool.allocate())
            self._view = None

    def view(self) -> tuple[int, ...]:
        if self._view is None:
            self._view = tuple(self._blocks)
        return self._view

    def block(self, index: int) -> int:
        """Returns the block at `index`."""
        return self._blocks[index]

    def replace(self, index: int, block: int) -> None:
        """Puts `block`, acquired by the caller, in the place of one with the same content."""
        self.pool.release(self._blocks[index])
        self._blocks[index] = block
        self._view = None

    def commit(self, num_computed: int) -> None:
        self._num_committed = len(self._blocks)

    def abandon(self) -> None:
        while len(self._blocks) > self._num_committed:
            self.pool.release(self._blocks.pop())
            self._view = None

    def free(self) -> None:
        while len(self._blocks) > self._num_dead:
            self.pool.release(self._blocks.pop())

    def used_blocks(self) -> Iterator[int]:
        yield from self._blocks[self._num_dead :]


class SlidingTable(FullTable):
    """A table that lets go of the blocks that lie wholly outside the window of every token to come."""

    __slots__ = ("_group",)

    def __init__(self, pool: BlockPool, block_tokens: int, shared: Sequence[int], group: KVGroup) -> None:
        super().__init__(pool, block_tokens, shared)
        self._group = group

    def num_missing_to_stay(self, num_tokens: int) -> int:
        return min(self.num_missing(num_tokens), self._group.window_blocks(self._block_tokens))

    def commit(self, num_computed: int) -> None:
        super().commit(num_computed)
        num_dead = self._group.first_needed_block(num_computed, self._block_tokens)
        while self._num_dead < num_dead:
            self.pool.release(self._blocks[self._num_dead])
            self._blocks[self._num_dead] = ABSENT
            self._num_dead += 1
            self._view = None


class StateSlots:
    """A slot with the state after the last committed token (ABSENT: the zero state), and those this sweep writes."""

    __slots__ = ("_current", "_targets", "pool")

    def __init__(self, pool: BlockPool, snapshot: int) -> None:
        """Begins after a snapshot, acquired by the caller, or with the zero state."""
        self.pool = pool
        self._current = snapshot
        self._targets: list[int] = []

    def num_missing(self, stop: int) -> int:
        return 1

    def num_missing_to_stay(self, num_tokens: int) -> int:
        return 2  # this sweep's target, which is the next sweep's source, and the next sweep's target

    def reach(self, limit: int) -> int:
        return limit if self.pool.num_available else 0

    def extend(self, stop: int) -> None:
        self._targets.append(self.pool.allocate())

    def view(self) -> tuple[int, ...]:
        targets = self._targets
        return (targets[-2] if len(targets) > 1 else self._current, targets[-1])

    @property
    def last_target(self) -> int:
        """The slot that receives the state after the last token of the last chunk."""
        return self._targets[-1]

    def commit(self, num_computed: int) -> None:
        if self._targets:
            target = self._targets.pop()
            self.abandon()
            self.free()
            self._current = target

    def abandon(self) -> None:
        while self._targets:
            self.pool.release(self._targets.pop())

    def free(self) -> None:
        if self._current != ABSENT:
            self.pool.release(self._current)
            self._current = ABSENT

    def used_blocks(self) -> Iterator[int]:
        yield from self._targets
        if self._current != ABSENT:
            yield self._current


def make_table(group: KVGroup, pool: BlockPool, block_tokens: int, shared: Sequence[int]) -> Table:
    """Returns the table of a sequence that begins with `shared`: leading blocks, or a state group's one snapshot."""
    if group.kind == "state":
        return StateSlots(pool, shared[-1] if shared else ABSENT)
    if group.kind == "sliding":
        return SlidingTable(pool, block_tokens, shared, group)
    return FullTable(pool, block_tokens, shared)
