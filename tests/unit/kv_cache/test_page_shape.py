"""What a token takes, as numbers and in codes."""

from __future__ import annotations

import pytest

from headrace.compression.kv_codec import INT4, INT8, KVCodec
from headrace.kv_cache.page_shape import PageShape


def shape(codec: KVCodec | None, *, key_width: int = 64, value_width: int = 64, latent: bool = False) -> PageShape:
    return PageShape(num_kv_heads=2, key_width=key_width, value_width=value_width, latent=latent, codec=codec)


@pytest.mark.parametrize(("codec", "num_bytes"), [(None, 2 * 2 * 128), (INT8, 2 * 2 * 68), (INT4, 2 * 2 * 36)])
def test_a_token_takes_the_records_of_its_key_and_its_value(codec: KVCodec | None, num_bytes: int) -> None:
    assert shape(codec).token_bytes(dtype_bytes=2) == num_bytes


def test_codes_take_the_same_whatever_the_models_dtype() -> None:
    assert shape(INT8).token_bytes(2) == shape(INT8).token_bytes(4)
    assert shape(None).token_bytes(4) == 2 * shape(None).token_bytes(2)


@pytest.mark.parametrize(("codec", "columns"), [(None, 72), (INT8, 64 + 4 + 8 + 4), (INT4, 32 + 4 + 4 + 4)])
def test_a_latent_and_the_rest_of_its_key_are_two_records_and_there_is_no_value(
    codec: KVCodec | None, columns: int
) -> None:
    latent = shape(codec, key_width=72, latent=True)
    assert (latent.key_columns, latent.value_columns) == (columns, 0)


def test_a_latent_that_is_its_whole_key_is_one_record() -> None:
    assert shape(INT8, latent=True).key_columns == INT8.num_bytes(64)
