"""What a checkpoint says about generation, and where it says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.errors import CorruptCheckpointError
from headrace.models.defaults import read_generation_defaults
from headrace.models.tokenizer import WithoutTokenizer


class Ending(WithoutTokenizer):
    """A tokenizer with an end token."""

    eos_token_ids = (9,)


def folder(path: Path, config: object, generation: object = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_the_generation_file_comes_first(tmp_path: Path) -> None:
    says = {"eos_token_id": [5, 6], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    found = read_generation_defaults(folder(tmp_path, {"eos_token_id": 7}, says), Ending())
    assert (found.eos_token_ids, found.do_sample, found.temperature, found.top_p) == ((5, 6), True, 0.6, 0.9)


def test_end_tokens_come_from_the_configuration_and_at_last_from_the_tokenizer(tmp_path: Path) -> None:
    assert read_generation_defaults(folder(tmp_path, {"eos_token_id": 7}, {}), Ending()).eos_token_ids == (7,)
    assert read_generation_defaults(folder(tmp_path, {"eos_token_id": [7, 8]}), Ending()).eos_token_ids == (7, 8)
    assert read_generation_defaults(folder(tmp_path, {"eos_token_id": None}), Ending()).eos_token_ids == (9,)
    assert read_generation_defaults(folder(tmp_path, {}), WithoutTokenizer()).eos_token_ids == ()


def test_end_token_0_is_an_end_token(tmp_path: Path) -> None:
    assert read_generation_defaults(
        folder(tmp_path, {"eos_token_id": 7}, {"eos_token_id": 0}), Ending()
    ).eos_token_ids == (0,)


@pytest.mark.parametrize("content", ["{", "[1]", '{"temperature": "hot"}', '{"eos_token_id": "</s>"}', "\ufeff\x00"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    folder(tmp_path, {})
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r"generation_config\.json"):
        read_generation_defaults(tmp_path, WithoutTokenizer())
