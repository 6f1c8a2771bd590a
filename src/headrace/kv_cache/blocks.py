"""Blocks of one KV group: which are free, how often each is used, and which keep something worth finding again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCopy:
    """The first `num_tokens` slots of block `source` are copied into block `target`, in every layer of the group."""

    group: int
    source: int
    target: int
    num_tokens: int


class BlockPool:
    """Numbers of the blocks 0 .. num_blocks - 1. Every block is in exactly one of three states:

        free ──allocate──▶ used ──last release──▶ idle    if it is kept (the prefix tree knows what it holds)
          ▲                 │ ◀────acquire────────  │
          └──last release───┘   (not kept)          │
          └───────────────────drop──────────────────┘

    A hold is a use by a transfer between tiers or by a copy: it begins, and later it completes. A block that is held is
    used, so nothing can evict it or free it before.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()
        self._uses = [0] * num_blocks
        self._holds = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Number of blocks that `allocate` can give at once."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Number of blocks that are free or can be made free by dropping what nobody uses."""
        return len(self._free) + len(self._idle)

    def allocate(self) -> int:
        """Takes a free block; the caller is its one user."""
        assert self._free, "no block is free: room is made before blocks are allocated"
        block = self._free.pop()
        self._uses[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """Adds a user to a block that is used or idle."""
        if not self._uses[block]:
            assert block in self._idle, f"block {block} is free and cannot be shared"
            del self._idle[block]
        self._uses[block] += 1

    def release(self, block: int) -> None:
        """Takes a user away. After the last one the block is idle, as the youngest, if it is kept, and else free."""
        assert self._uses[block] > self._holds[block], f"block {block} is released by nobody who uses it"
        self._leave(block)

    def begin_hold(self, block: int) -> None:
        """Protects a used or idle block until `complete_hold`."""
        self.acquire(block)
        self._holds[block] += 1

    def complete_hold(self, block: int) -> None:
        """Ends one hold; the block goes where a release would send it."""
        assert self._holds[block], f"block {block} is not held"
        self._holds[block] -= 1
        self._leave(block)

    def keep(self, block: int) -> None:
        """The prefix tree will find this used block again: without users it becomes idle and not free."""
        assert self._uses[block] and block not in self._kept, f"block {block} is unused or kept already"
        self._kept.add(block)

    def drop(self, block: int) -> None:
        """The prefix tree forgets the block: it is free now, or as soon as its last user leaves."""
        self._kept.remove(block)
        if not self._uses[block]:
            del self._idle[block]
            self._free.append(block)

    def free_blocks(self) -> list[int]:
        """Returns the blocks that hold nothing."""
        return list(self._free)

    def oldest_idle(self) -> int:
        """Returns the block that has been without a user for longest."""
        assert self._idle, "no block is idle"
        return next(iter(self._idle))

    def _leave(self, block: int) -> None:
        self._uses[block] -= 1
        if self._uses[block]:
            return
        if block in self._kept:
            self._idle[block] = None
        else:
            self._free.append(block)

    def check_integrity(self, uses: Mapping[int, int], kept: set[int]) -> list[str]:
        """Returns what does not add up, given the users of each block (without holds) and what the tree knows."""
        faults = []
        for block in range(self.num_blocks):
            expected = uses.get(block, 0) + self._holds[block]
            if self._uses[block] != expected:
                faults.append(f"block {block}: counts {self._uses[block]} users, has {expected}")
        used = {block for block in range(self.num_blocks) if self._uses[block]}
        states = [*self._free, *self._idle, *used]
        if sorted(states) != list(range(self.num_blocks)):
            faults.append(f"{len(self._free)} free + {len(self._idle)} idle + {len(used)} used != {self.num_blocks}")
        if self._kept != kept:
            faults.append(f"kept by pool or tree alone: {sorted(self._kept ^ kept)}")
        if not self._kept >= self._idle.keys():
            faults.append(f"idle but not kept: {sorted(self._idle.keys() - self._kept)}")
        return faults
