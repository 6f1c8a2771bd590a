from __future__ import annotations

import numpy as np
import pytest

from headrace.sampling.counter_random import philox4x32, uniform

# From the Random123 distribution, examples/kat_vectors, "philox4x32 10".
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    k0, k1 = (np.array([word], dtype=np.uint64) for word in key)
    assert tuple(int(word[0]) for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    seeds, samples, steps = list(range(64)), [index % 3 for index in range(64)], list(range(100, 164))
    together = uniform(seeds, samples, steps)
    alone = [uniform([seed], [sample], [step])[0] for seed, sample, step in zip(seeds, samples, steps, strict=True)]
    assert together.tolist() == alone


def test_every_seed_sample_and_step_draws_another_number() -> None:
    seeds, samples, steps = (grid.ravel().tolist() for grid in np.mgrid[0:20, 0:20, 0:20])
    assert len(set(uniform(seeds, samples, steps).tolist())) == 8000


def test_negative_and_large_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert (
        uniform([-1, 2**64 - 1, 2**64], [0] * 3, [0] * 3).tolist()
        == uniform([2**64 - 1] * 2 + [0], [0] * 3, [0] * 3).tolist()
    )


def test_numbers_are_spread_evenly_over_the_unit_interval() -> None:
    numbers = uniform([9] * 100_000, [0] * 100_000, range(100_000))
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 149  # the 99.9th percentile with 99 degrees of freedom
    assert numbers.min() >= 0
    assert numbers.max() < 1
