"""The library writes the bytes that plain torch writes."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.attention import ragged
from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.compression.kv_codec import KV_CODECS
from headrace.kernels.library import load, usable
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import make_pages

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")
LIBRARIES = [load(name) for name in usable()]
SHAPES = {
    "64": (2, 64, 64, False),
    "128": (8, 128, 128, False),
    "80 and 40": (3, 80, 40, False),
    "odd": (2, 37, 21, False),
    "one number": (2, 1, 1, False),
    "latent": (1, 72, 64, True),
    "odd latent": (1, 150, 133, True),
    "latent that is its whole key": (1, 48, 48, True),
}
CODECS = pytest.mark.parametrize("codec", ["none", *KV_CODECS])
BLOCK_TOKENS = 8


def numbers_of(shape: str, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Keys and values as a model hands them over: the heads' numbers lie side by side, the tokens' do not."""
    num_heads, key_width, value_width, latent = SHAPES[shape]
    generator = torch.Generator().manual_seed(num_tokens)
    offsets = 4 * torch.randn(key_width, generator=generator)
    keys = (torch.randn(num_heads, num_tokens, key_width, generator=generator) + offsets).to(dtype).transpose(0, 1)
    return keys, None if latent else keys[..., :value_width].flip(0) * 0.1


def written(
    found: ctypes.CDLL | None,
    shape: str,
    codec: str,
    keys: Tensor,
    values: Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
) -> KVPages:
    num_heads, key_width, value_width, latent = SHAPES[shape]
    num_blocks = -(-len(keys) // BLOCK_TOKENS) + 1
    pages = make_pages(
        PageShape(
            num_kv_heads=num_heads,
            key_width=key_width,
            value_width=value_width,
            latent=latent,
            codec=KV_CODECS.get(codec),
        ),
        num_blocks,
        BLOCK_TOKENS,
        keys.dtype,
        lambda size, element: torch.full(size, 9, dtype=element),
    )
    layout = RaggedLayout.build(
        block_tokens=BLOCK_TOKENS,
        starts=np.array([3]),
        lengths=np.array([len(keys)]),
        block_table=np.random.default_rng(0).permutation(num_blocks)[None],
        device=torch.device("cpu"),
    )
    monkeypatch.setattr(ragged, "library", lambda: found)
    pages.write(keys, values, layout)
    return pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@CODECS
def test_pages_are_byte_for_byte_those_of_torch(
    codec: str, shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_tokens in (1, 9, 300):
        keys, values = numbers_of(shape, num_tokens, dtype)
        expected = written(None, shape, codec, keys, values, monkeypatch)
        for found in LIBRARIES:
            pages = written(found, shape, codec, keys, values, monkeypatch)
            assert pages.keys.equal(expected.keys)
            assert pages.values is None or (expected.values is not None and pages.values.equal(expected.values))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
@pytest.mark.parametrize("shape", ["64", "128", "odd", "odd latent"])
@CODECS
def test_what_is_not_finite_is_lost_as_in_torch(
    codec: str, shape: str, where: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = numbers_of(shape, 9, torch.float32)
    (keys if where == "keys" or values is None else values)[4, 0, 5] = bad

    def back(found: ctypes.CDLL | None) -> tuple[Tensor, Tensor]:
        pages = written(found, shape, codec, keys, values, monkeypatch)
        return pages.numbers(pages.keys, pages.values, keys.shape[-1])

    expected = back(None)
    assert not expected[0].isfinite().all()
    for found in LIBRARIES:
        for number, plain in zip(back(found), expected, strict=True):
            torch.testing.assert_close(number, plain, rtol=0, atol=0, equal_nan=True)


@CODECS
def test_equal_and_tiny_and_huge_numbers_are_written_as_in_torch(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values = numbers_of("64", 9, torch.float32)
    assert values is not None
    for token, size in enumerate((0.0, 1e-45, 1e-38, 1e-20, 1e20, 1e37, 1e38, 3e38)):
        keys[token] = keys[token].sign() * size
        values[token] = size
    expected = written(None, "64", codec, keys, values, monkeypatch)
    for found in LIBRARIES:
        pages = written(found, "64", codec, keys, values, monkeypatch)
        plain, own = (each.numbers(each.keys, each.values, 64) for each in (expected, pages))
        for number, other in zip(own, plain, strict=True):
            torch.testing.assert_close(number, other, rtol=0, atol=0, equal_nan=True)
