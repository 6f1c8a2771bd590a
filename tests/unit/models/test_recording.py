"""Calls that are made again give what they would give anew, and what is not understood is not recorded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.kernels.attention import Rows
from headrace.kernels.library import library, usable
from headrace.kernels.linear import linear
from headrace.kernels.pointwise import NormForm, rms_norm
from headrace.models.recording import Arena, Recording, watched

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
SCALE = torch.full((64,), 3.0)
NO_ROWS = Rows(*(np.zeros(0, np.int64),) * 3, np.zeros((0, 1), np.int64))


def found_library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def drawn(seed: int) -> Tensor:
    return torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))


def layer(first: Tensor, second: Tensor) -> Tensor:
    """Two products, a norm of their sum, and a sum with what came in."""
    (one,) = linear(found_library(), first, [(WEIGHT, None)])
    (other,) = linear(found_library(), second.view(1, 3, 64), [(WEIGHT, SCALE)])
    return rms_norm(found_library(), one + other[0], SCALE, 1e-5, NormForm.WEIGHT_TIMES_NUMBER) + first


def recorded(run: Callable[[Tensor, Tensor], Tensor], *staying: Tensor, num_bytes: int = 1 << 16) -> Recording | None:
    given = drawn(2), drawn(3)
    result, found = watched(found_library(), lambda: run(*given))
    assert isinstance(result, Tensor)
    assert torch.equal(result, run(*given))
    return None if found is None else Recording.of(found_library(), found, Arena(num_bytes), given, staying)


def replayed(recording: Recording, first: Tensor, second: Tensor) -> Tensor:
    result = recording.empty_result()
    recording.prepare((first, second), result, NO_ROWS)
    recording.make()
    return result


def test_calls_are_made_again_with_other_tensors() -> None:
    recording = recorded(layer, WEIGHT, SCALE)
    assert recording is not None
    found = [replayed(recording, drawn(seed), drawn(seed + 1)) for seed in (4, 5, 6)]
    for seed, again in zip((4, 5, 6), found, strict=True):
        assert torch.equal(again, layer(drawn(seed), drawn(seed + 1)))


def test_recordings_may_use_the_same_memory() -> None:
    arena, given = Arena(1 << 16), (drawn(2), drawn(3))
    pair = []
    for _ in range(2):
        _, run = watched(found_library(), lambda: layer(*given))
        assert run is not None
        pair.append(Recording.of(found_library(), run, arena, given, (WEIGHT, SCALE)))
    first, second = pair
    assert first is not None and second is not None
    between = replayed(first, drawn(7), drawn(8))
    expected = layer(layer(drawn(7), drawn(8)), drawn(9))
    assert torch.equal(replayed(second, between, drawn(9)), expected)


def test_recordings_are_made_one_after_the_other() -> None:
    first, second = recorded(layer, WEIGHT, SCALE), recorded(layer, WEIGHT, SCALE)
    assert first is not None and second is not None
    between, result = first.empty_result(), second.empty_result()
    given = drawn(7), drawn(8), drawn(9)
    for _ in range(2):
        first.prepare(given[:2], between, NO_ROWS, second)
        second.prepare((between, given[2]), result, NO_ROWS)
        first.make()
        assert torch.equal(result, layer(layer(*given[:2]), given[2]))
    assert torch.equal(replayed(first, *given[:2]), layer(*given[:2]))


@pytest.mark.parametrize(
    "run",
    [
        lambda first, second: layer(first, second).relu(),
        lambda first, second: layer(first, second).mul_(2),
        lambda first, second: layer(first, second + 1),
        lambda first, second: layer(first, second) if second.sum().item() > 0 else layer(first, first),
        lambda first, second: layer(first, second)[:2],  # of which the whole would be written
        lambda first, second: layer(first, second.t().contiguous().t()),
        lambda first, second: first,
    ],
)
def test_what_does_more_than_call_is_not_recorded(run: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert recorded(run, WEIGHT, SCALE) is None


def test_what_uses_other_memory_is_not_recorded() -> None:
    assert recorded(layer, WEIGHT) is None


def test_what_writes_more_than_there_is_memory_for_is_not_recorded() -> None:
    assert recorded(layer, WEIGHT, SCALE, num_bytes=64) is None
