"""What one sequence has in all groups, and what a sweep in the making adds to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headrace.kv_cache.prefix_tree import ABSENT, Node, PrefixTree
from headrace.kv_cache.tables import BlockTable, StateTable, Table


class SequenceBlocks:
    """A table for each group, and the sequence's place in the prefix tree.

    Blocks that fill are given to the tree at once, so that others can share them in the same sweep. Where the tree has
    a block with these tokens already, the sequence uses both until it commits, and from then on the tree's alone. So
    who uses a node always uses its ancestors too.

    Attributes:
        num_tokens: position up to which the blocks reach, those of the sweep in the making included.
        full_at: a chunk that stops before this position neither allocates nor fills a block.
    """

    __slots__ = (
        "_adopted",
        "_block_tables",
        "_block_tokens",
        "_committed_node",
        "_given",
        "_has_states",
        "_held",
        "_is_changed",
        "_num_committed",
        "_tree",
        "full_at",
        "node",
        "num_tokens",
        "tables",
    )

    def __init__(self, tree: PrefixTree, tables: list[Table], node: Node | None, num_tokens: int) -> None:
        """Begins after `num_tokens` shared tokens, at `node`; without a node the sequence neither gives nor adopts."""
        self.tables = tables
        self.node = node
        self.num_tokens = num_tokens
        self._tree = tree
        self._block_tokens = tree.block_tokens
        self._has_states = any(isinstance(table, StateTable) for table in tables)
        self._committed_node = node
        self._num_committed = num_tokens
        self._given: list[tuple[Node, int]] = []  # (node, group)
        self._adopted: list[tuple[BlockTable, int, int]] = []  # (table, index, the tree's block)
        self._held: list[tuple[Table, int]] = []  # (table, source of a copy)
        self._block_tables: tuple[tuple[int, ...], ...] | None = None
        self._is_changed = True
        self.full_at = self._full_at()
        tree.move_pin(None, node)

    @property
    def block_tables(self) -> tuple[tuple[int, ...], ...]:
        """The tables as the chunk that stops at `num_tokens` needs them."""
        if self._block_tables is None:
            self._block_tables = tuple([table.view() for table in self.tables])
        return self._block_tables

    def reach(self, limit: int) -> int:
        """Returns the last position up to `limit` that the available blocks of all groups allow."""
        for table in self.tables:
            limit = table.reach(limit)
        return limit

    def allocate(self, stop: int) -> None:
        """Allocates what computing up to position `stop` needs, in room that `reach` has found."""
        for group_id, table in enumerate(self.tables):
            num_missing = table.num_missing(stop)
            if num_missing:
                self._tree.make_room(group_id, num_missing)
                table.extend(num_missing)
        self.num_tokens = stop
        self.full_at = self._full_at()
        self._changed()

    def needed(self) -> list[dict[int, int]]:
        """Returns the blocks of each group that the next token or a later one reads, by their index in the table."""
        return [table.needed(self.num_tokens) for table in self.tables]

    def take_in(self, num_tokens: int, token_ids: Sequence[int]) -> list[dict[int, int]]:
        """Allocates what is lacking to have `num_tokens` tokens, in room that is there; the tree gets what it lacks.

        Returns:
            The new blocks of each group, by their index in the table; the caller has them filled.
        """
        present = [table.needed(num_tokens) for table in self.tables]
        self.allocate(num_tokens)
        for table in self.tables:
            table.commit(num_tokens)
        self.give_full_blocks(token_ids)
        return [
            {index: block for index, block in table.needed(num_tokens).items() if index not in had}
            for table, had in zip(self.tables, present, strict=True)
        ]

    def give_full_blocks(self, token_ids: Sequence[int]) -> None:
        """Gives the tree what it lacks of the blocks that have filled, and adopts what it has."""
        node = self.node
        while node is not None and (node.depth + 1) * self._block_tokens <= self.num_tokens:
            start = node.depth * self._block_tokens
            child = self._tree.child(node, tuple(token_ids[start : start + self._block_tokens]))
            for group_id, table in enumerate(self.tables):
                if isinstance(table, BlockTable):
                    self._give_or_adopt(child, group_id, table, node.depth)
            self._tree.move_pin(node, child)
            self.node = node = child

    def _give_or_adopt(self, node: Node, group_id: int, table: BlockTable, index: int) -> None:
        own, block = table.block(index), node.blocks[group_id]
        if own == ABSENT:  # it lies before the window of a sequence that came up again
            return
        if block == ABSENT:
            self._give(node, group_id, own)
        else:
            table.pool.acquire(block)
            self._adopted.append((table, index, block))

    def give_snapshot(self) -> None:
        """Gives the tree the state after the tokens it has just got, where it lacks one."""
        assert self.node is not None and self.node.depth * self._block_tokens == self.num_tokens
        for group_id, table in enumerate(self.tables):
            if isinstance(table, StateTable) and self.node.blocks[group_id] == ABSENT:
                self._give(self.node, group_id, table.last_target)

    def _give(self, node: Node, group_id: int, block: int) -> None:
        self._tree.give(node, group_id, block)
        self._given.append((node, group_id))

    def hold_source(self, table: Table, block: int) -> None:
        """Protects a block until the sweep that copies it has ended."""
        table.pool.begin_hold(block)
        self._held.append((table, block))

    def commit(self, num_tokens: int) -> None:
        """Makes permanent the first `num_tokens` tokens; blocks that no later token reads are released.

        What this sweep computed after them is forgotten; it fills no block.
        """
        assert self._num_committed <= num_tokens <= self.num_tokens
        self._num_committed = self.num_tokens = num_tokens
        if not self._is_changed:
            return
        for table, index, block in self._adopted:
            table.replace(index, block)
        for node, group_id in self._given:
            self._tree.publish(node, group_id)
        for each in self.tables:
            each.commit(num_tokens)
        self._committed_node = self.node
        self._end_sweep()
        self._is_changed = False

    def abandon(self) -> None:
        """Takes back everything since the last commit."""
        for table, _, block in reversed(self._adopted):  # what builds on a block is released before it
            table.pool.release(block)
        self._tree.move_pin(self.node, self._committed_node)
        for node, group_id in reversed(self._given):
            self._tree.take_back(node, group_id)
        for each in self.tables:
            each.abandon()
        self.node, self.num_tokens = self._committed_node, self._num_committed
        self.full_at = self._full_at()
        self._end_sweep()

    def free(self) -> None:
        """Releases everything, with nothing pending but copies of a sequence that has only begun."""
        assert not self._given and not self._adopted, "a sweep is neither committed nor abandoned"
        self._end_sweep()
        for table in self.tables:
            table.free()
        self._tree.move_pin(self.node, None)

    def num_uses(self, group_id: int) -> Counter[int]:
        """Returns how often this sequence uses each block of a group."""
        table = self.tables[group_id]
        uses = Counter(table.used_blocks())
        uses.update(block for adopting, _, block in self._adopted if adopting is table)
        return uses

    def _full_at(self) -> int:
        return 0 if self._has_states else -(-self.num_tokens // self._block_tokens) * self._block_tokens

    def _changed(self) -> None:
        self._is_changed = True
        self._block_tables = None

    def _end_sweep(self) -> None:
        for table, block in self._held:
            table.pool.complete_hold(block)
        self._held.clear()
        self._given.clear()
        self._adopted.clear()
        self._changed()
