"""What a caller may choose."""

from __future__ import annotations

import pytest

from headrace.compression.kv_codec import INT4
from headrace.engine.options import EngineOptions
from headrace.errors import OptionError


def test_only_the_model_has_to_be_named() -> None:
    options = EngineOptions(model="demo")
    assert (options.dtype, options.device, options.memory_bytes, options.max_model_len) == ("auto", "auto", None, None)


@pytest.mark.parametrize("name", ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_micro_batches"])
def test_numbers_are_at_least_1(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is 0; expected at least 1"):
        EngineOptions(model="demo", **{name: 0})  # type: ignore[arg-type]


def test_a_context_has_room_for_a_prompt_and_an_answer() -> None:
    with pytest.raises(OptionError, match="max_model_len is 1; expected at least 2"):
        EngineOptions(model="demo", max_model_len=1)


def test_an_unknown_load_format_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="load_format is 'gguf'; expected one of auto, dummy"):
        EngineOptions(model="demo", load_format="gguf")


def test_keys_and_values_are_kept_in_the_models_dtype_or_in_codes() -> None:
    assert EngineOptions(model="demo").kv_codec is None
    assert EngineOptions(model="demo", kv_cache_dtype="int4").kv_codec == INT4
    with pytest.raises(OptionError, match="kv_cache_dtype is 'fp8'; expected one of auto, int8, int4"):
        EngineOptions(model="demo", kv_cache_dtype="fp8")
