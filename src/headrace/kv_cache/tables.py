"""The blocks of one sequence in one group: a table for keys and values, a few slots for a state.

    committed                        | this sweep
    [ 7 ][ 3 ][ 9 ][ 4 · · · · ]     | [ 1 ][ 6 ]        full
    [-1 ][-1 ][ 2 ][ 8 · · · · ]     | [ 5 ][ 0 ]        sliding: dead blocks are -1, indices stay absolute
    current 3                        | targets 5, 8      state: every chunk reads one slot and writes the next

`commit` makes what this sweep added permanent, `abandon` takes it back, `free` releases everything, last block first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.prefix_tree import ABSENT


class BlockTable:
    """Keys and values: the block of position p is at index p // block_tokens, or ABSENT if no token will read it."""

    __slots__ = ("_block_tokens", "_blocks", "_group", "_num_committed", "_num_dead", "pool")

    def __init__(self, group: KVGroup, pool: BlockPool, block_tokens: int, shared: Sequence[int]) -> None:
        """Begins with blocks that other sequences computed, acquired by the caller; leading ones may be ABSENT."""
        self.pool = pool
        self._group = group
        self._block_tokens = block_tokens
        self._blocks = list(shared)
        self._num_committed = len(shared)
        self._num_dead = shared.count(ABSENT)

    def block(self, index: int) -> int:
        """Returns the block at `index`."""
        return self._blocks[index]

    def num_missing(self, stop: int) -> int:
        """Returns the number of blocks that computing up to position `stop` allocates."""
        return max(0, -(-stop // self._block_tokens) - len(self._blocks))

    def num_missing_to_stay(self, num_tokens: int) -> int:
        """Returns how many blocks a sequence of `num_tokens` lacks at some time on its way."""
        return min(self.num_missing(num_tokens), self._group.window_blocks(self._block_tokens))

    def reach(self, limit: int) -> int:
        """Returns the last position up to `limit` that the blocks available now allow."""
        return min(limit, (len(self._blocks) + self.pool.num_available) * self._block_tokens)

    def extend(self, num_blocks: int) -> None:
        """Allocates so many blocks."""
        for _ in range(num_blocks):
            self._blocks.append(self.pool.allocate())

    def needed(self, num_computed: int) -> dict[int, int]:
        """Returns the committed blocks that a token at position `num_computed`, or one after it, reads, by index."""
        first = self._group.first_needed_block(num_computed, self._block_tokens)
        return dict(enumerate(self._blocks[first : self._num_committed], first))

    def view(self) -> tuple[int, ...]:
        """Returns the table as chunks have it."""
        return tuple(self._blocks)

    def replace(self, index: int, block: int) -> None:
        """Puts `block`, acquired by the caller, in the place of one with the same content."""
        self.pool.release(self._blocks[index])
        self._blocks[index] = block

    def commit(self, num_computed: int) -> None:
        """Keeps the blocks, but those that lie wholly outside the window of every token to come."""
        self._num_committed = len(self._blocks)
        first_needed = self._group.first_needed_block(num_computed, self._block_tokens)
        for index in range(self._num_dead, first_needed):
            self.pool.release(self._blocks[index])
            self._blocks[index] = ABSENT
        self._num_dead = max(self._num_dead, first_needed)

    def abandon(self) -> None:
        """Releases what was allocated since the last commit."""
        while len(self._blocks) > self._num_committed:
            self.pool.release(self._blocks.pop())

    def free(self) -> None:
        """Releases every block, those of later positions first, as the prefix tree wants it."""
        while len(self._blocks) > self._num_dead:
            self.pool.release(self._blocks.pop())

    def used_blocks(self) -> Iterator[int]:
        """Yields the blocks that this table uses."""
        yield from self._blocks[self._num_dead :]


class StateTable:
    """A state: the slot with the state after the last committed token (ABSENT: zero), and those this sweep writes."""

    __slots__ = ("_current", "_targets", "pool")

    def __init__(self, pool: BlockPool, snapshot: int) -> None:
        """Begins after a snapshot, acquired by the caller, or with the zero state."""
        self.pool = pool
        self._current = snapshot
        self._targets: list[int] = []

    @property
    def last_target(self) -> int:
        """The slot that receives the state after the last chunk."""
        return self._targets[-1]

    def num_missing(self, stop: int) -> int:
        """Returns the number of slots that one more chunk allocates."""
        return 1

    def num_missing_to_stay(self, num_tokens: int) -> int:
        """Returns the number of slots for this sweep's target, the next sweep's source, and for that sweep's target."""
        return 2

    def reach(self, limit: int) -> int:
        """Returns `limit` if there is a slot for one more chunk, and else 0."""
        return limit if self.pool.num_available else 0

    def extend(self, num_slots: int) -> None:
        """Allocates the targets of so many chunks."""
        for _ in range(num_slots):
            self._targets.append(self.pool.allocate())

    def needed(self, num_computed: int) -> dict[int, int]:
        """Returns the current slot, as number 0; nothing for the zero state."""
        return {} if self._current == ABSENT else {0: self._current}

    def view(self) -> tuple[int, ...]:
        """Returns (source, target) of the last chunk."""
        source = self._targets[-2] if len(self._targets) > 1 else self._current
        return (source, self._targets[-1])

    def commit(self, num_computed: int) -> None:
        """Makes the last target current and releases all other slots."""
        if self._targets:
            target = self._targets.pop()
            self.abandon()
            self.free()
            self._current = target

    def abandon(self) -> None:
        """Releases the targets."""
        while self._targets:
            self.pool.release(self._targets.pop())

    def free(self) -> None:
        """Releases the current slot."""
        if self._current != ABSENT:
            self.pool.release(self._current)
            self._current = ABSENT

    def used_blocks(self) -> Iterator[int]:
        """Yields the slots that this table uses."""
        yield from self._targets
        if self._current != ABSENT:
            yield self._current


Table = BlockTable | StateTable


def make_table(group: KVGroup, pool: BlockPool, block_tokens: int, shared: Sequence[int]) -> Table:
    """Returns the table of a sequence that begins with `shared`: leading blocks, or a state group's one snapshot."""
    if group.kind == "state":
        return StateTable(pool, shared[-1] if shared else ABSENT)
    return BlockTable(group, pool, block_tokens, shared)
