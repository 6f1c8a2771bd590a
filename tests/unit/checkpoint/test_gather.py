from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.checkpoint.gather import Box, Gather, Piece, concatenate, stack
from headrace.checkpoint.tensors import TensorEntry


class Store:
    """Checkpoint tensors in memory, and the arrays they stand for."""

    def __init__(self) -> None:
        self.flat: dict[str, np.ndarray] = {}

    def new(self, shape: tuple[int, ...]) -> tuple[Gather, np.ndarray]:
        name = f"t{len(self.flat)}"
        array = np.arange(np.prod(shape, dtype=int), dtype=np.int64).reshape(shape) + 1000 * len(self.flat)
        self.flat[name] = array.reshape(-1)
        entry = TensorEntry(
            name=name, file=Path("f"), offset=64, num_bytes=array.nbytes, dtype="int64", shape=array.shape
        )
        return Gather.whole(entry), array

    def read(self, gather: Gather) -> np.ndarray:
        result = np.full(np.prod(gather.shape, dtype=int), -1)
        for run in gather.runs():
            target = slice(run.target_offset, run.target_offset + run.num_elements)
            assert (result[target] == -1).all(), "an element was filled twice"
            result[target] = self.flat[run.entry.name][run.source_offset : run.source_offset + run.num_elements]
        return result.reshape(gather.shape)


@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    num_stacked=st.integers(1, 3),
    num_joined=st.integers(1, 3),
    stack_dim=st.integers(0, 3),
    join_dim=st.integers(0, 3),
)
def test_runs_copy_what_stacking_and_concatenating_arrays_makes(
    shape: tuple[int, ...], num_stacked: int, num_joined: int, stack_dim: int, join_dim: int
) -> None:
    store = Store()
    stack_dim, join_dim = stack_dim % (len(shape) + 1), join_dim % (len(shape) + 1)
    gathers, arrays = [], []
    for _ in range(num_joined):
        parts = [store.new(shape) for _ in range(num_stacked)]
        gathers.append(stack([gather for gather, _ in parts], stack_dim))
        arrays.append(np.stack([array for _, array in parts], stack_dim))
    np.testing.assert_array_equal(
        store.read(concatenate(gathers, join_dim)), np.concatenate(arrays, join_dim), strict=True
    )


def test_merged_experts_are_one_run_per_checkpoint_tensor() -> None:
    store = Store()
    gate = [store.new((6, 4))[0] for _ in range(3)]
    up = [store.new((6, 4))[0] for _ in range(3)]
    merged = concatenate([stack(gate, 0), stack(up, 0)], 1)
    assert merged.shape == (3, 12, 4)
    assert [run.num_elements for run in merged.runs()] == [24] * 6


def test_an_expert_of_tensors_that_were_stacked_is_its_own_tensors() -> None:
    store = Store()
    gate, up = [store.new((6, 4)) for _ in range(3)], [store.new((5, 4)) for _ in range(3)]
    merged = concatenate([stack([gather for gather, _ in part], 0) for part in (gate, up)], 1)
    for index in range(3):
        item = merged.item(index)
        assert item.shape == (11, 4) and len(list(item.runs())) == 2
        np.testing.assert_array_equal(store.read(item), np.concatenate([gate[index][1], up[index][1]]))


def test_an_expert_of_tensors_that_are_merged_in_the_file_is_a_part_of_each() -> None:
    store = Store()
    gate, up = store.new((3, 6, 4)), store.new((3, 5, 4))
    merged = concatenate([gate[0], up[0]], 1)
    for index in range(3):
        expected = np.concatenate([gate[1][index], up[1][index]])
        np.testing.assert_array_equal(store.read(merged.item(index)), expected)
        np.testing.assert_array_equal(store.read(gate[0].item(index)), gate[1][index])


def test_an_expert_of_parts_that_follow_each_other_is_in_one_of_them() -> None:
    store = Store()
    first, second = store.new((1, 6)), store.new((2, 6))
    both = concatenate([first[0], second[0]], 0)
    expected = np.concatenate([first[1], second[1]])
    for index in range(3):
        np.testing.assert_array_equal(store.read(both.item(index)), expected[index])


def test_rows_are_those_of_every_part_that_has_some() -> None:
    store = Store()
    first, second = store.new((4, 6)), store.new((3, 6))
    both, expected = concatenate([first[0], second[0]], 0), np.concatenate([first[1], second[1]])
    for begin, end in ((0, 7), (1, 3), (2, 6), (4, 7), (6, 7)):
        np.testing.assert_array_equal(store.read(both.rows(begin, end)), expected[begin:end])


def test_a_part_of_a_tensor_can_be_a_piece() -> None:
    store = Store()
    whole, array = store.new((4, 5))
    piece = Piece(
        entry=whole.pieces[0].entry, source=Box(start=(1, 0), shape=(2, 5)), target=Box(start=(0, 0), shape=(2, 5))
    )
    gather = Gather(shape=(2, 5), pieces=(piece,))
    np.testing.assert_array_equal(store.read(gather), array[1:3])
    assert [(run.file_offset, run.num_elements) for run in gather.runs()] == [(64 + 5 * 8, 10)]


def test_unequal_shapes_cannot_be_stacked() -> None:
    store = Store()
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        stack([store.new((2, 3))[0], store.new((3, 2))[0]], 0)


def test_shapes_that_differ_elsewhere_cannot_be_concatenated() -> None:
    store = Store()
    with pytest.raises(ValueError, match="along dimension 1"):
        concatenate([store.new((2, 3))[0], store.new((3, 3))[0]], 1)
