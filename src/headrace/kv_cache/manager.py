"""Which blocks each sequence has in every group, what it shares with others, and what a sweep in the making adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.kv_cache.blocks import BlockCopy, BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.prefix_tree import ABSENT, Node, PrefixTree
from headrace.kv_cache.tables import FullTable, StateSlots, Table, make_table


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixHit:
    """What a sequence need not compute: its first `num_tokens` tokens, once the sweep has made the copies."""

    num_tokens: int
    copies: tuple[BlockCopy, ...] = ()


@dataclass(kw_only=True, slots=True)
class _Entry:
    """A sequence: its tables by group, its place in the prefix tree, and what a sweep in the making adds."""

    tables: list[Table]
    node: Node | None
    num_tokens: int

    committed_node: Node | None
    num_committed: int
    given: list[tuple[Node, int]] = field(default_factory=list)  # (node, group): blocks the tree got from here
    adopted: list[tuple[int, int, int]] = field(default_factory=list)  # (group, index, block): same content, shared
    held: list[tuple[int, int]] = field(default_factory=list)  # (group, block): sources of copies


class KVCacheManager:
    """Bookkeeping of all KV groups. A sequence's life is

        begin ─▶ extend ─▶ ... ─▶ commit ─▶ extend ─▶ ... ─▶ free
                   └──────▶ abandon ─┘

    where one sweep is all that lies between two commits. What a sweep adds can be shared at once, by sequences that
    begin while the same sweep is made and run after it; `abandon` takes all of it back, last sequence first.
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
        """
        assert len(groups) == len(num_blocks), f"{len(groups)} groups but {len(num_blocks)} pools"
        assert snapshot_tokens % block_tokens == 0, "a snapshot is kept where a block ends"
        self.groups = tuple(groups)
        self.block_tokens = block_tokens
        self.pools = [BlockPool(number) for number in num_blocks]
        # Up to so many tokens one sequence can always be computed, alone; sys.maxsize where nothing grows.
        self.capacity_tokens = min(
            group.capacity_tokens(number, block_tokens) for group, number in zip(groups, num_blocks, strict=True)
        )
        self._snapshot_tokens = snapshot_tokens
        self._tree = PrefixTree(self.groups, self.pools, block_tokens) if enable_prefix_caching else None
        self._has_states = any(group.kind == "state" for group in groups)
        self._keeps_states = self._has_states and enable_prefix_caching
        self._entries: dict[int, _Entry] = {}
        self._pending: set[tuple[int, int]] = set()  # (group, block): kept by the tree, but not computed yet

    def begin(self, sequence_id: int, token_ids: Sequence[int], salt: str = "") -> PrefixHit:
        """Gives a sequence the longest prefix of its tokens that all groups have, at most all tokens but the last.

        Whole blocks are shared, also those that the sweep in the making has yet to compute; of a block that agrees only
        in part, the agreeing tokens are copied. Sequences of different `salt` share nothing.
        """
        assert sequence_id not in self._entries, f"sequence {sequence_id} has begun already"
        root = self._tree.root(salt) if self._tree else None
        path = self._tree.match(root, token_ids, len(token_ids) - 1) if self._tree and root else []
        node, num_tokens = (path[-1] if path else root), len(path) * self.block_tokens
        tables = [make_table(g, self.pools[g.group_id], self.block_tokens, self._share(g, path)) for g in self.groups]
        entry = _Entry(tables=tables, node=node, num_tokens=num_tokens, committed_node=node, num_committed=num_tokens)
        self._entries[sequence_id] = entry
        if self._tree is None:
            return PrefixHit(num_tokens=0)
        self._tree.move_pin(None, node)
        copies = self._copy_partial_block(entry, token_ids)
        return PrefixHit(num_tokens=entry.num_tokens, copies=copies)

    def _share(self, group: KVGroup, path: list[Node]) -> list[int]:
        """Acquires what a sequence needs to go on after `path`; what it does not need is ABSENT."""
        first = group.first_needed_block(len(path) * self.block_tokens, self.block_tokens)
        blocks = [node.blocks[group.group_id] for node in path[first:]]
        for block in blocks:
            self.pools[group.group_id].acquire(block)
        return [ABSENT] * first + blocks

    def _copy_partial_block(self, entry: _Entry, token_ids: Sequence[int]) -> tuple[BlockCopy, ...]:
        """Continues a shared prefix inside a block that another sequence computed, on a copy of that block."""
        assert self._tree is not None and entry.node is not None
        start = entry.num_tokens
        found = self._tree.closest_child(
            entry.node, tuple(token_ids[start : min(start + self.block_tokens, len(token_ids) - 1)])
        )
        if found is None or self._has_states or not self._can_be_copied(found[0]):
            return ()
        # A held source is one block less for the sequence itself, which might then never fit.
        if any(t.num_missing_to_stay(len(token_ids)) + 1 > t.pool.num_available for t in entry.tables):
            return ()
        child, num_tokens = found
        for group_id, source in enumerate(child.blocks):
            self.pools[group_id].begin_hold(source)
            entry.held.append((group_id, source))
        entry.num_tokens = start + num_tokens
        self._allocate(entry, entry.num_tokens)
        return tuple(
            BlockCopy(group=group_id, source=source, target=entry.tables[group_id].view()[-1], num_tokens=num_tokens)
            for group_id, source in entry.held
        )

    def _can_be_copied(self, node: Node) -> bool:
        return all(block != ABSENT and (group, block) not in self._pending for group, block in enumerate(node.blocks))

    def can_admit(self, sequence_id: int, num_tokens: int, *, num_spare: int) -> bool:
        """Whether a sequence of `num_tokens` tokens leaves `num_spare` blocks in every group that grows."""
        return all(
            table.num_missing_to_stay(num_tokens) + (0 if group.kind == "state" else num_spare)
            <= table.pool.num_available
            for group, table in zip(self.groups, self._entries[sequence_id].tables, strict=True)
        )

    def extend(
        self, sequence_id: int, token_ids: Sequence[int], limit: int
    ) -> tuple[int, tuple[tuple[int, ...], ...]] | None:
        """Allocates what the next chunk needs in every group; the blocks that it fills are shared from now on.

        The chunk ends at position `limit`, or before it: where blocks are lacking, or where a state is to be kept.

        Args:
            token_ids: all known tokens of the sequence.
            limit: last position that the chunk may reach.

        Returns:
            Where the chunk stops, and its block tables, one per group; None if there is no block for even one token.
        """
        entry = self._entries[sequence_id]
        stop = self._snapshot_stop(entry.num_tokens, limit, len(token_ids)) if self._keeps_states else limit
        for table in entry.tables:
            stop = table.reach(stop)
        if stop <= entry.num_tokens:
            return None
        self._allocate(entry, stop)
        entry.num_tokens = stop
        if entry.node is not None and stop // self.block_tokens > entry.node.depth:
            self._give_full_blocks(entry, token_ids)
        if self._keeps_states and self._is_snapshot_point(stop, len(token_ids)):
            self._give_snapshot(entry)
        return stop, tuple([table.view() for table in entry.tables])

    def _snapshot_stop(self, start: int, limit: int, num_known: int) -> int:
        next_multiple = (start // self._snapshot_tokens + 1) * self._snapshot_tokens
        return min(stop for stop in (limit, next_multiple, self._last_block_end(num_known)) if stop > start)

    def _is_snapshot_point(self, stop: int, num_known: int) -> bool:
        return stop % self._snapshot_tokens == 0 or stop == self._last_block_end(num_known)

    def _last_block_end(self, num_known: int) -> int:
        """Returns where a repetition of these tokens will look for a state: the last block's end before the last."""
        return (num_known - 1) // self.block_tokens * self.block_tokens

    def _allocate(self, entry: _Entry, stop: int) -> None:
        for group_id, table in enumerate(entry.tables):
            num_missing = table.num_missing(stop)
            if num_missing:
                while table.pool.num_free < num_missing:
                    assert self._tree is not None, "nothing is idle where nothing is kept"
                    self._tree.evict(group_id)
                table.extend(stop)

    def _give_full_blocks(self, entry: _Entry, token_ids: Sequence[int]) -> None:
        """Gives the tree what it lacks of the blocks that fill; the rest will be exchanged for the tree's own."""
        assert self._tree is not None and entry.node is not None
        node = entry.node
        for index in range(node.depth, entry.num_tokens // self.block_tokens):
            tokens = tuple(token_ids[index * self.block_tokens : (index + 1) * self.block_tokens])
            node = self._tree.child(node, tokens)
            for group_id, table in enumerate(entry.tables):
                if not isinstance(table, FullTable):
                    continue
                if node.blocks[group_id] == ABSENT:
                    self._give(entry, node, group_id, table.block(index))
                else:
                    self.pools[group_id].acquire(node.blocks[group_id])
                    entry.adopted.append((group_id, index, node.blocks[group_id]))
        self._tree.move_pin(entry.node, node)
        entry.node = node

    def _give_snapshot(self, entry: _Entry) -> None:
        assert entry.node is not None
        for group_id, table in enumerate(entry.tables):
            if isinstance(table, StateSlots) and entry.node.blocks[group_id] == ABSENT:
                self._give(entry, entry.node, group_id, table.last_target)

    def _give(self, entry: _Entry, node: Node, group_id: int, block: int) -> None:
        assert self._tree is not None
        self._tree.give(node, group_id, block)
        entry.given.append((node, group_id))
        self._pending.add((group_id, block))

    def commit(self, sequence_id: int) -> None:
        """Makes permanent what this sweep computed; blocks that no later token reads are released."""
        entry = self._entries[sequence_id]
        for group_id, index, block in entry.adopted:
            table = entry.tables[group_id]
            assert isinstance(table, FullTable)
            table.replace(index, block)
        for node, group_id in entry.given:
            self._pending.remove((group_id, node.blocks[group_id]))
        for table in entry.tables:
            table.commit(entry.num_tokens)
        entry.adopted.clear()
        entry.given.clear()
        entry.committed_node, entry.num_committed = entry.node, entry.num_tokens
        self._complete_holds(entry)

    def abandon(self, sequence_id: int) -> None:
        """Takes back what `extend` did since the last commit. Of several sequences, the last one goes first.

        A sequence that began in this sweep must be freed next: what it shares may not have been computed.
        """
        entry = self._entries[sequence_id]
        for group_id, _, block in entry.adopted:
            self.pools[group_id].release(block)
        if self._tree is not None:
            self._tree.move_pin(entry.node, entry.committed_node)
            for node, group_id in reversed(entry.given):
                self._pending.remove((group_id, node.blocks[group_id]))
                self._tree.take_back(node, group_id)
        for table in entry.tables:
            table.abandon()
        entry.adopted.clear()
        entry.given.clear()
        entry.node, entry.num_tokens = entry.committed_node, entry.num_committed
        self._complete_holds(entry)

    def free(self, sequence_id: int) -> None:
        """Forgets a sequence that has nothing pending; the tree keeps what it was given until room is needed."""
        entry = self._entries.pop(sequence_id)
        assert not entry.given and not entry.adopted, f"sequence {sequence_id} is neither committed nor abandoned"
        self._complete_holds(entry)
        for table in entry.tables:
            table.free()
        if self._tree is not None:
            self._tree.move_pin(entry.node, None)

    def _complete_holds(self, entry: _Entry) -> None:
        for group_id, block in entry.held:
            self.pools[group_id].complete_hold(block)
        entry.held.clear()

    def check_integrity(self) -> None:
        """Compares every count with what sequences and tree really use.

        Raises:
            AssertionError: says all the numbers that do not add up.
        """
        faults = self._tree.check_integrity() if self._tree else []
        for group_id, pool in enumerate(self.pools):
            uses = Counter(block for entry in self._entries.values() for block in entry.tables[group_id].used_blocks())
            uses.update(block for entry in self._entries.values() for g, _, block in entry.adopted if g == group_id)
            kept = self._tree.kept(group_id) if self._tree else set()
            faults += [f"group {group_id}: {fault}" for fault in pool.check_integrity(uses, kept)]
        assert not faults, "the KV cache does not add up: " + "; ".join(faults)
