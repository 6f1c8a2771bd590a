from __future__ import annotations

from transformers.core_model_loading import dot_natural_key

from headrace.checkpoint.tensors import natural_key

NAMES = [
    "m.experts.10.w1",
    "m.experts.2.w1",
    "m.experts.2.w10",
    "m.experts.2.w9",
    "m.a",
    "m.3",
    "m",
    "m.a1b.c",
    "m.a.1",
]


def test_numbers_in_names_sort_as_numbers() -> None:
    assert sorted(["e.10", "e.9", "e.1"], key=natural_key) == ["e.1", "e.9", "e.10"]


def test_the_order_is_that_in_which_transformers_stacks_tensors() -> None:
    assert sorted(NAMES, key=natural_key) == sorted(NAMES, key=dot_natural_key)
