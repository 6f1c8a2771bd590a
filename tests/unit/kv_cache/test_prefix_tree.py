from __future__ import annotations

import pytest

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.prefix_tree import ABSENT, Node, PrefixTree

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
SLIDING = KVGroup(group_id=1, layers=(1,), kind="sliding", window=3)


class Forest:
    """A tree over two groups, with blocks of two tokens and a short way to fill it."""

    def __init__(self) -> None:
        self.pools = [BlockPool(8), BlockPool(8)]
        self.tree = PrefixTree([FULL, SLIDING], self.pools, 2)

    def plant(self, *tokens: int, salt: str = "") -> list[Node]:
        """Gives blocks for these tokens to the tree, and leaves them idle from the last to the first."""
        path = [self.tree.root(salt)]
        for start in range(0, len(tokens), 2):
            path.append(self.tree.child(path[-1], tokens[start : start + 2]))
            for group_id, pool in enumerate(self.pools):
                if path[-1].blocks[group_id] == ABSENT:
                    self.tree.give(path[-1], group_id, pool.allocate())
                    self.tree.publish(path[-1], group_id)
                else:
                    pool.acquire(path[-1].blocks[group_id])
        for node in reversed(path[1:]):
            for group_id, pool in enumerate(self.pools):
                pool.release(node.blocks[group_id])
        return path[1:]


@pytest.fixture
def forest() -> Forest:
    return Forest()


def test_a_match_goes_as_far_as_whole_blocks_agree(forest: Forest) -> None:
    planted = forest.plant(1, 2, 3, 4, 5, 6)
    assert forest.tree.match(forest.tree.root(""), [1, 2, 3, 4, 5, 9], 6) == planted[:2]


def test_a_match_ends_at_the_most_tokens_allowed(forest: Forest) -> None:
    planted = forest.plant(1, 2, 3, 4)
    assert forest.tree.match(forest.tree.root(""), [1, 2, 3, 4], 3) == planted[:1]


def test_trees_of_different_salt_share_nothing(forest: Forest) -> None:
    forest.plant(1, 2, salt="adapter")
    assert forest.tree.match(forest.tree.root(""), [1, 2], 2) == []


def test_a_match_needs_the_window_of_a_sliding_group(forest: Forest) -> None:
    planted = forest.plant(1, 2, 3, 4, 5, 6)
    forest.tree.take_back(planted[1], SLIDING.group_id)
    root = forest.tree.root("")
    assert forest.tree.match(root, [1, 2, 3, 4, 5, 6], 4) == planted[:1]
    # Position 6 reads 4 and 5 (window 3), so that the gap in block 1 does not matter.
    assert forest.tree.match(root, [1, 2, 3, 4, 5, 6], 6) == planted


def test_the_closest_child_agrees_for_longest(forest: Forest) -> None:
    for last in (1, 5, 9):
        forest.plant(7, last)
    found = forest.tree.closest_child(forest.tree.root(""), (7, 5))
    assert found is not None and (found.node.tokens, found.num_tokens) == ((7, 5), 2)
    assert forest.tree.closest_child(forest.tree.root(""), (8, 5)) is None


def test_eviction_takes_the_oldest_leaf_with_the_blocks_of_all_groups(forest: Forest) -> None:
    forest.plant(1, 2, 3, 4)
    forest.plant(1, 2, 5, 6)
    forest.tree.make_room(FULL.group_id, 6)
    assert [node.tokens for node in forest.tree.nodes()] == [(1, 2), (5, 6)]
    assert [pool.num_free for pool in forest.pools] == [6, 6]


def test_eviction_in_a_sliding_group_takes_one_block_and_leaves_the_node(forest: Forest) -> None:
    planted = forest.plant(1, 2)
    forest.tree.make_room(SLIDING.group_id, 8)
    assert planted[0].blocks[SLIDING.group_id] == ABSENT
    assert list(forest.tree.nodes()) == planted


def test_a_pinned_node_stays_without_blocks(forest: Forest) -> None:
    planted = forest.plant(1, 2)
    forest.tree.move_pin(None, planted[0])
    forest.tree.make_room(FULL.group_id, 8)
    assert list(forest.tree.nodes()) == planted
    forest.tree.move_pin(planted[0], None)
    assert list(forest.tree.nodes()) == []


def test_a_block_is_published_once_it_is_computed(forest: Forest) -> None:
    node = forest.tree.child(forest.tree.root(""), (1, 2))
    for group_id, pool in enumerate(forest.pools):
        forest.tree.give(node, group_id, pool.allocate())
    assert not forest.tree.is_published(node)
    for group_id in range(2):
        forest.tree.publish(node, group_id)
    assert forest.tree.is_published(node)
