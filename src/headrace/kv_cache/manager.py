"""Which blocks every sequence has, what sequences share, and what a sweep in the making adds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from headrace.kv_cache.blocks import BlockCopy, BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.parking import BlockMove, Parked, ParkingLot
from headrace.kv_cache.prefix_tree import ABSENT, Node, PrefixTree
from headrace.kv_cache.sequence_blocks import SequenceBlocks
from headrace.kv_cache.tables import BlockTable, make_table


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixHit:
    """What a sequence need not compute: its first `num_tokens` tokens, once the sweep has made copies and moves."""

    num_tokens: int
    copies: tuple[BlockCopy, ...] = ()


class KVCacheManager:
    """Bookkeeping of all KV groups. A sequence's life is

        begin ─▶ extend ─▶ ... ─▶ commit ─▶ extend ─▶ ... ─▶ free
                   └──────▶ abandon ─┘

    where one sweep is all that lies between two commits. What a sweep adds can be shared at once, by sequences that
    begin while the same sweep is made and run after it; `abandon` takes all of it back, last sequence first.

    A sequence that has to leave can be parked, with its KV in the tier below:

        park ─▶ free ─▶ begin ─▶ bring_up ─▶ commit        its places below are free again
                  │       └──▶ abandon ─▶ free             it is parked as before
                  └──▶ unpark                              nothing of it is left

    Attributes:
        groups: the groups, by group_id.
        pools: the pool of each group.
        block_tokens: positions per block.
        capacity_tokens: up to how many tokens one sequence can always be computed, alone; sys.maxsize if without end.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        *,
        num_blocks: Sequence[int],
        block_tokens: int = 32,
        snapshot_tokens: int = 256,
        enable_prefix_caching: bool = True,
    ) -> None:
        """Makes an empty cache.

        Args:
            num_blocks: blocks (slots, for state groups) in the pool of each group.
            block_tokens: positions per block.
            snapshot_tokens: a prefill keeps the state of state groups every so many tokens; a multiple of block_tokens.
            enable_prefix_caching: whether sequences share blocks, at one time and over time.
        """
        assert [group.group_id for group in groups] == list(range(len(num_blocks))), "groups do not match their pools"
        assert snapshot_tokens % block_tokens == 0, "a state is kept where a block ends"
        self.groups = tuple(groups)
        self.pools = tuple(BlockPool(number) for number in num_blocks)
        self.block_tokens = block_tokens
        self.capacity_tokens = min(
            group.capacity_tokens(pool.num_blocks, block_tokens)
            for group, pool in zip(self.groups, self.pools, strict=True)
        )
        self._shares = enable_prefix_caching
        self._has_states = any(group.kind == "state" for group in groups)
        self._keeps_states = self._has_states and enable_prefix_caching
        self._snapshot_tokens = snapshot_tokens
        self._tree = PrefixTree(self.groups, self.pools, block_tokens)
        self._sequences: dict[int, SequenceBlocks] = {}
        self._parked = ParkingLot([0] * len(num_blocks))
        self._returning: dict[int, Parked] = {}

    def begin(self, sequence_id: int, token_ids: Sequence[int], salt: str = "") -> PrefixHit:
        """Gives a sequence the longest prefix of its tokens that all groups have, at most all tokens but the last.

        Whole blocks are shared, also those that the sweep in the making has yet to compute; of a block that agrees only
        in part, the agreeing tokens are copied. Sequences of different `salt` share nothing. A sequence that is parked
        and has more below gets all of that, as soon as `bring_up` has been called.
        """
        assert sequence_id not in self._sequences, f"sequence {sequence_id} has begun already"
        root = self._tree.root(salt) if self._shares else None
        path = self._tree.match(root, token_ids, len(token_ids) - 1) if root else []
        parked = self._parked.find(sequence_id)
        if parked is not None and len(path) * self.block_tokens < parked.num_tokens:
            return self._begin_parked(sequence_id, parked, root, token_ids)
        tables = [
            make_table(group, self.pools[group.group_id], self.block_tokens, self._share(group, path))
            for group in self.groups
        ]
        node = path[-1] if path else root
        sequence = SequenceBlocks(self._tree, tables, node, len(path) * self.block_tokens)
        self._sequences[sequence_id] = sequence
        copies = self._copy_part_of_block(sequence, token_ids)
        return PrefixHit(num_tokens=sequence.num_tokens, copies=copies)

    def _begin_parked(self, sequence_id: int, parked: Parked, root: Node | None, token_ids: Sequence[int]) -> PrefixHit:
        path = self._tree.path_in_full_groups(root, token_ids, parked.num_tokens) if root else []
        tables = [
            make_table(
                group, self.pools[group.group_id], self.block_tokens, self._share_with(group, path, parked.num_tokens)
            )
            for group in self.groups
        ]
        node, num_tokens = path[-1] if path else root, len(path) * self.block_tokens
        self._sequences[sequence_id] = SequenceBlocks(self._tree, tables, node, num_tokens)
        self._returning[sequence_id] = parked
        return PrefixHit(num_tokens=parked.num_tokens)

    def _share_with(self, group: KVGroup, path: Sequence[Node], num_tokens: int) -> list[int]:
        """Acquires of what a sequence of `num_tokens` tokens needs the leading part that is along `path`."""
        if group.kind == "state":
            return []
        first = group.first_needed_block(num_tokens, self.block_tokens)
        blocks = [node.blocks[group.group_id] for node in path[first:]]
        blocks = list(takewhile(lambda block: block != ABSENT, blocks))
        for block in blocks:
            self.pools[group.group_id].acquire(block)
        return [ABSENT] * first + blocks

    def bring_up(self, sequence_id: int, token_ids: Sequence[int]) -> tuple[BlockMove, ...]:
        """Allocates what a parked sequence that has begun lacks, in room that `can_admit` has found.

        The prefix tree gets it, too: who begins later in the same sweep can share it.

        Returns:
            What has to come up before the sweep starts; nothing for a sequence of which all is here.
        """
        sequence, parked = self._sequences[sequence_id], self._returning.pop(sequence_id, None)
        if parked is None:
            return ()
        return tuple(
            BlockMove(group=group_id, block=block, place=parked.places[group_id][index])
            for group_id, blocks in enumerate(sequence.take_in(parked.num_tokens, token_ids))
            for index, block in blocks.items()
        )

    def open_parking(self, num_places: Sequence[int]) -> None:
        """Gives the cache room below: for so many blocks of each group. In the beginning it has none."""
        self._parked = ParkingLot(num_places)

    def close_parking(self) -> None:
        """Forgets what is below of all sequences, and parks no more of them."""
        self._parked = ParkingLot([0] * len(self.pools))

    def can_park(self, sequence_id: int) -> bool:
        """Whether the tier below has room for what a sequence has."""
        return self._parked.has_room(self._sequences[sequence_id].needed())

    def park(self, sequence_id: int) -> tuple[BlockMove, ...]:
        """Takes room below for a sequence that has nothing pending; to be freed next.

        Returns:
            What has to go down before its blocks are written again.
        """
        sequence = self._sequences[sequence_id]
        return self._parked.park(sequence_id, sequence.num_tokens, sequence.needed())

    def unpark(self, sequence_id: int) -> None:
        """Forgets what is below of a sequence, if anything is."""
        self._parked.release(sequence_id)

    def _share(self, group: KVGroup, path: Sequence[Node]) -> list[int]:
        """Acquires what a sequence needs to go on after `path`; what it does not need is ABSENT."""
        first = group.first_needed_block(len(path) * self.block_tokens, self.block_tokens)
        blocks = [node.blocks[group.group_id] for node in path[first:]]
        for block in blocks:
            self.pools[group.group_id].acquire(block)
        return [ABSENT] * first + blocks

    def _copy_part_of_block(self, sequence: SequenceBlocks, token_ids: Sequence[int]) -> tuple[BlockCopy, ...]:
        """Goes on inside a block that another sequence computed, on a copy of that block."""
        if sequence.node is None or self._has_states:
            return ()  # a state cannot be cut at a token within a block
        start, stop = sequence.num_tokens, min(sequence.num_tokens + self.block_tokens, len(token_ids) - 1)
        found = self._tree.closest_child(sequence.node, tuple(token_ids[start:stop]))
        # While its source is held, a copy takes one block more than the sequence itself, which must fit even so.
        if found is None or not self._tree.is_published(found.node) or not self._fits(sequence, len(token_ids), 1):
            return ()
        for table, source in zip(sequence.tables, found.node.blocks, strict=True):
            sequence.hold_source(table, source)
        sequence.allocate(start + found.num_tokens)
        return tuple(
            BlockCopy(group=group_id, source=source, target=block_table[-1], num_tokens=found.num_tokens)
            for group_id, (source, block_table) in enumerate(zip(found.node.blocks, sequence.block_tables, strict=True))
        )

    @property
    def available_tokens(self) -> int:
        """How many tokens more the cache has room for, of sequences that share nothing; sys.maxsize if without end."""
        full = (pool for group, pool in zip(self.groups, self.pools, strict=True) if group.kind == "full")
        return min((pool.num_available * self.block_tokens for pool in full), default=sys.maxsize)

    def can_admit(self, sequence_id: int, num_tokens: int, *, num_spare: int) -> bool:
        """Whether a sequence of `num_tokens` tokens leaves `num_spare` blocks to others in every group that grows."""
        return self._fits(self._sequences[sequence_id], num_tokens, num_spare)

    def _fits(self, sequence: SequenceBlocks, num_tokens: int, num_spare: int) -> bool:
        return all(
            table.num_missing_to_stay(num_tokens) + (num_spare if isinstance(table, BlockTable) else 0)
            <= table.pool.num_available
            for table in sequence.tables
        )

    def extend(
        self, sequence_id: int, token_ids: Sequence[int], limit: int
    ) -> tuple[int, tuple[tuple[int, ...], ...]] | None:
        """Allocates what the next chunk needs in every group; the blocks that it fills are shared from now on.

        The chunk ends at position `limit`, or before it: where blocks are lacking, or where a state is to be kept.

        Args:
            sequence_id: a sequence that has begun.
            token_ids: all of its known tokens.
            limit: last position that the chunk may reach.

        Returns:
            Where the chunk stops, and its block tables, one per group; None if there is no block for even one token.
        """
        sequence = self._sequences[sequence_id]
        start = sequence.num_tokens
        assert start < limit <= len(token_ids), f"no chunk [{start}, {limit}) in {len(token_ids)} tokens"
        if limit < sequence.full_at:
            sequence.num_tokens = limit
            return limit, sequence.block_tables
        snapshot = self._next_snapshot(start, len(token_ids)) if self._keeps_states else limit
        stop = sequence.reach(min(limit, snapshot))
        if stop <= start:
            return None
        sequence.allocate(stop)
        sequence.give_full_blocks(token_ids)
        if self._keeps_states and stop == snapshot:
            sequence.give_snapshot()
        return stop, sequence.block_tables

    def room_to_guess(self, sequence_id: int) -> int:
        """Returns how many tokens of a sequence's next chunk may be guesses after its first token.

        They can be taken back as long as nothing depends on them: within a block that they do not fill.
        """
        if self._has_states:
            return 0
        position = self._sequences[sequence_id].num_tokens
        return self.block_tokens - 2 - position % self.block_tokens

    def _next_snapshot(self, start: int, num_known: int) -> int:
        """Returns the first position after `start` where a state is kept.

        Besides the multiples of `snapshot_tokens` that is the end of the last block before the last token, where a
        sequence that repeats these tokens will look for a state.
        """
        next_multiple = (start // self._snapshot_tokens + 1) * self._snapshot_tokens
        last_block_end = (num_known - 1) // self.block_tokens * self.block_tokens
        return min(next_multiple, last_block_end) if last_block_end > start else next_multiple

    def commit(self, sequence_id: int, num_tokens: int | None = None) -> None:
        """Makes permanent what this sweep computed; blocks that no later token reads are released.

        Args:
            num_tokens: of the sequence, if not all are to stay; see `room_to_guess`.
        """
        sequence = self._sequences[sequence_id]
        sequence.commit(sequence.num_tokens if num_tokens is None else num_tokens)
        self._parked.release(sequence_id)

    def abandon(self, sequence_id: int) -> None:
        """Takes back everything since the last commit. Of several sequences, the last one goes first.

        A sequence that began in this sweep must be freed next: what it shares may not have been computed.
        """
        self._sequences[sequence_id].abandon()

    def free(self, sequence_id: int) -> None:
        """Forgets a sequence that has nothing pending; the prefix tree keeps what it got until room is needed."""
        self._returning.pop(sequence_id, None)
        self._sequences.pop(sequence_id).free()

    def drop_unused(self) -> list[list[int]]:
        """Forgets all that no sequence uses, and returns the blocks of each group that hold nothing then."""
        for group_id, pool in enumerate(self.pools):
            self._tree.make_room(group_id, pool.num_available)
        return [pool.free_blocks() for pool in self.pools]

    def check_integrity(self) -> None:
        """Compares every count with what sequences and tree really use.

        Raises:
            AssertionError: says all the numbers that do not add up.
        """
        faults = self._tree.check_integrity() + self._parked.check_integrity()
        for group_id, pool in enumerate(self.pools):
            uses: Counter[int] = Counter()
            for sequence in self._sequences.values():
                uses += sequence.num_uses(group_id)
            faults += [f"group {group_id}: {fault}" for fault in pool.check_integrity(uses, self._tree.kept(group_id))]
        assert not faults, "the KV cache does not add up: " + "; ".join(faults)
