from __future__ import annotations

import torch

from headrace.checkpoint.dummy import fill_random


def filled(shape: tuple[int, ...], name: str = "a.weight", seed: int = 0, dtype: torch.dtype = torch.float32):
    tensor = torch.full(shape, torch.nan, dtype=dtype)
    fill_random(tensor, name, seed)
    return tensor


def test_the_same_seed_and_name_give_the_same_numbers() -> None:
    assert torch.equal(filled((64, 64)), filled((64, 64)))


def test_another_seed_or_name_gives_other_numbers() -> None:
    assert not torch.equal(filled((64, 64)), filled((64, 64), seed=1))
    assert not torch.equal(filled((64, 64)), filled((64, 64), name="b.weight"))


def test_matrices_are_small_and_finite_beyond_the_repeated_block() -> None:
    matrix = filled((1100, 1000), dtype=torch.bfloat16).float()
    assert matrix.isfinite().all()
    assert abs(matrix.std().item() - 0.02) < 0.001
    assert not torch.equal(matrix[0], matrix[-1])


def test_weights_of_norms_are_around_one_and_biases_around_zero() -> None:
    assert abs(filled((512,), "norm.weight").mean().item() - 1) < 0.01
    assert abs(filled((512,), "proj.bias").mean().item()) < 0.01


def test_integers_become_zero() -> None:
    tensor = torch.ones(4, dtype=torch.int64)
    fill_random(tensor, "n", 0)
    assert tensor.tolist() == [0, 0, 0, 0]
