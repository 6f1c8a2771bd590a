"""What was computed before and can be found again: a tree whose edges are full blocks of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.groups import KVGroup

ABSENT: Final = -1


class Node:
    """The state of the cache after one more full block of tokens.

    Attributes:
        tokens: the block's tokens, below those of `parent`.
        depth: number of blocks from the root to here, this one included.
        blocks: for each group the block with these tokens' KV, or the slot with the state after them, or ABSENT.
        children: by their tokens.
        sorted_children: the keys of `children` in order, to find the one that agrees longest.
        num_pins: number of sequences that will insert below this node, which therefore stays.
    """

    __slots__ = ("blocks", "children", "depth", "num_pins", "parent", "sorted_children", "tokens")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], num_groups: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.depth: int = parent.depth + 1 if parent else 0
        self.blocks = [ABSENT] * num_groups
        self.children: dict[tuple[int, ...], Node] = {}
        self.sorted_children: list[tuple[int, ...]] = []
        self.num_pins = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialMatch:
    """A node of which only the first `num_tokens` tokens agree."""

    node: Node
    num_tokens: int


class PrefixTree:
    """One tree for each salt; sequences of different salts (adapter, KV codec) never share.

    The tree keeps blocks that sequences gave it, also when nobody uses them any more, until they are evicted, oldest
    first. Blocks of `full` groups are evicted with their node, and always at a leaf: whoever uses a node uses all nodes
    above it, and releases them from the leaf upwards. Blocks of `sliding` and `state` groups are evicted one by one.
    A node goes when it has no block, no child and no pin.
    """

    def __init__(self, groups: Sequence[KVGroup], pools: Sequence[BlockPool], block_tokens: int) -> None:
        self._groups = groups
        self._pools = pools
        self.block_tokens = block_tokens
        self._roots: dict[str, Node] = {}
        self._owners: list[dict[int, Node]] = [{} for _ in groups]
        self._unpublished: set[tuple[int, int]] = set()

    def root(self, salt: str) -> Node:
        """Returns the node of no tokens at all."""
        if salt not in self._roots:
            self._roots[salt] = Node(None, (), len(self._groups))
        return self._roots[salt]

    def match(self, root: Node, token_ids: Sequence[int], max_tokens: int) -> list[Node]:
        """Returns the longest path along `token_ids[:max_tokens]` after which all groups can go on."""
        path: list[Node] = []
        depth = 0
        unbroken_from = [0] * len(self._groups)  # the first block of the run without gaps that ends here
        for stop in range(self.block_tokens, max_tokens + 1, self.block_tokens):
            node = path[-1] if path else root
            child = node.children.get(tuple(token_ids[stop - self.block_tokens : stop]))
            if child is None:
                break
            path.append(child)
            for group_id, block in enumerate(child.blocks):
                if block == ABSENT:
                    unbroken_from[group_id] = len(path)
            if all(
                unbroken_from[group.group_id] <= group.first_needed_block(stop, self.block_tokens)
                for group in self._groups
            ):
                depth = len(path)
        return path[:depth]

    def path_in_full_groups(self, root: Node, token_ids: Sequence[int], max_tokens: int) -> list[Node]:
        """Returns the longest path along `token_ids[:max_tokens]` whose nodes have a block in every full group."""
        path: list[Node] = []
        full = [group.group_id for group in self._groups if group.kind == "full"]
        for stop in range(self.block_tokens, max_tokens + 1, self.block_tokens):
            node = path[-1] if path else root
            child = node.children.get(tuple(token_ids[stop - self.block_tokens : stop]))
            if child is None or any(child.blocks[group_id] == ABSENT for group_id in full):
                break
            path.append(child)
        return path

    def closest_child(self, node: Node, tokens: tuple[int, ...]) -> PartialMatch | None:
        """Returns the child that agrees with `tokens` for longest; None if none agrees in even one token."""
        place = bisect_left(node.sorted_children, tokens)
        neighbours = node.sorted_children[max(place - 1, 0) : place + 1]
        num_tokens, best = max(((num_common(tokens, each), each) for each in neighbours), default=(0, ()))
        return PartialMatch(node=node.children[best], num_tokens=num_tokens) if num_tokens else None

    def child(self, node: Node, tokens: tuple[int, ...]) -> Node:
        """Returns the child of `node` with these tokens; makes it where there is none."""
        child = node.children.get(tokens)
        if child is None:
            child = node.children[tokens] = Node(node, tokens, len(self._groups))
            insort(node.sorted_children, tokens)
        return child

    def give(self, node: Node, group_id: int, block: int) -> None:
        """Keeps a used block, which the sweep in the making computes, at a node that lacks one in this group."""
        assert node.blocks[group_id] == ABSENT, f"group {group_id} has a block at this node"
        self._pools[group_id].keep(block)
        node.blocks[group_id] = block
        self._owners[group_id][block] = node
        self._unpublished.add((group_id, block))

    def publish(self, node: Node, group_id: int) -> None:
        """Notes that a block that was given has been computed."""
        self._unpublished.remove((group_id, node.blocks[group_id]))

    def is_published(self, node: Node) -> bool:
        """Whether the node has a computed block in every group."""
        return all(b != ABSENT and (group_id, b) not in self._unpublished for group_id, b in enumerate(node.blocks))

    def take_back(self, node: Node, group_id: int) -> None:
        """Forgets the block of a node, and the node if nothing else is left of it."""
        block, node.blocks[group_id] = node.blocks[group_id], ABSENT
        self._unpublished.discard((group_id, block))
        del self._owners[group_id][block]
        self._pools[group_id].drop(block)
        self._prune(node)

    def move_pin(self, source: Node | None, target: Node | None) -> None:
        """Pins `target` for a sequence that had pinned `source`."""
        if target is not None:
            target.num_pins += 1
        if source is not None:
            source.num_pins -= 1
            self._prune(source)

    def make_room(self, group_id: int, num_blocks: int) -> None:
        """Evicts what nobody has used for longest until so many blocks of this group are free."""
        pool = self._pools[group_id]
        while pool.num_free < num_blocks:
            self._evict(group_id, self._owners[group_id][pool.oldest_idle()])

    def _evict(self, group_id: int, node: Node) -> None:
        if self._groups[group_id].kind != "full":
            self.take_back(node, group_id)
            return
        assert not node.children, "a block of a full group is evicted before those that build on it"
        for group in self._groups:
            if node.blocks[group.group_id] != ABSENT:
                self.take_back(node, group.group_id)

    def _prune(self, node: Node) -> None:
        while node.parent and not node.num_pins and not node.children and all(b == ABSENT for b in node.blocks):
            siblings = node.parent.sorted_children
            del siblings[bisect_left(siblings, node.tokens)]
            del node.parent.children[node.tokens]
            node = node.parent

    def nodes(self) -> Iterator[Node]:
        """Yields every node but the roots."""
        waiting = list(self._roots.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            if node.parent:
                yield node

    def kept(self, group_id: int) -> set[int]:
        """Returns the blocks of this group that the tree keeps."""
        return set(self._owners[group_id])

    def check_integrity(self) -> list[str]:
        """Returns what does not add up."""
        faults = []
        found: list[dict[int, Node]] = [{} for _ in self._groups]
        for node in self.nodes():
            if node.sorted_children != sorted(node.children):
                faults.append(f"depth {node.depth}: {len(node.children)} children, {len(node.sorted_children)} sorted")
            if not (node.children or node.num_pins or any(block != ABSENT for block in node.blocks)):
                faults.append(f"depth {node.depth}: a node without block, child and pin")
            for group_id, block in enumerate(node.blocks):
                if block != ABSENT:
                    found[group_id][block] = node
        for group_id, owners in enumerate(self._owners):
            if owners != found[group_id]:
                faults.append(
                    f"group {group_id}: {len(owners)} blocks have an owner, {len(found[group_id])} are in nodes"
                )
        return faults


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Returns the number of tokens with which both begin."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
