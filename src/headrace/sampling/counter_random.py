"""Random numbers that are a function of (seed, sample, step) and of nothing else.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3),
computed for many rows at once. There is no state, so it does not matter which rows share a sweep, nor how often a row
was preempted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_NUM_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = npt.NDArray[np.uint64]  # 32-bit words, in 64-bit places so that products do not overflow


def uniform(seeds: Sequence[int], sample_indices: Sequence[int], steps: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns one number in [0, 1) per row, shape (R,), with 53 random bits.

    Args:
        seeds: any integers; taken modulo 2**64.
        sample_indices: which of the row's `n` answers, below 2**32.
        steps: tokens generated so far, below 2**32.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    zeros = np.zeros_like(key)
    counter = (np.array(steps, dtype=np.uint64), zeros, np.array(sample_indices, dtype=np.uint64), zeros)
    high, low, _, _ = philox4x32(counter, (key & _LOW, key >> _HALF))
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Returns four random words for each counter and key; all arrays have one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> _HALF) ^ c1 ^ k0, product1 & _LOW, (product0 >> _HALF) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3
