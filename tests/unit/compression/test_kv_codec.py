"""What a codec makes of a number of numbers."""

from __future__ import annotations

import pytest

from headrace.compression.kv_codec import INT4, INT8, KV_CODECS


@pytest.mark.parametrize(
    ("width", "int8_bytes", "int4_bytes"),
    [
        (64, 64 + 4, 32 + 4),
        (128, 128 + 8, 64 + 8),
        (40, 40 + 4, 20 + 4),
        (80, 80 + 8, 40 + 8),
        (96, 96 + 8, 48 + 8),
        (37, 37 + 4, 19 + 4),
        (1, 1 + 4, 1 + 4),
        (0, 0, 0),
    ],
)
def test_a_record_has_all_codes_and_four_bytes_for_each_64(width: int, int8_bytes: int, int4_bytes: int) -> None:
    assert (INT8.num_bytes(width), INT4.num_bytes(width)) == (int8_bytes, int4_bytes)


def test_codecs_are_known_by_the_names_that_users_write() -> None:
    assert KV_CODECS == {"int8": INT8, "int4": INT4}
    assert (INT8.largest_code, INT4.largest_code) == (255, 15)
