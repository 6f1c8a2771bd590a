"""What a checkpoint says about generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headrace.checkpoint.checkpoint import read_config
from headrace.errors import CorruptCheckpointError
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer
from headrace.models.transformers_api import PreTrainedModel
from headrace.sampling.parameters import GenerationDefaults


def read_generation_defaults(path: Path, tokenizer: Tokenizer | WithoutTokenizer) -> GenerationDefaults:
    """Reads `generation_config.json`; end tokens that it does not name come from config.json, else the tokenizer.

    Raises:
        CorruptCheckpointError: the file is not JSON, or a value in it cannot be.
    """
    file = path / "generation_config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{file}: not readable as JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{file}: holds {type(values).__name__}, expected an object; download it again")
    return _defaults(values, read_config(path), tokenizer)


def loaded_generation_defaults(model: PreTrainedModel, tokenizer: Tokenizer | WithoutTokenizer) -> GenerationDefaults:
    """Returns what the generation configuration of a model in memory says, as `read_generation_defaults`.

    Raises:
        CorruptCheckpointError: a value in it cannot be.
    """
    values = {} if model.generation_config is None else model.generation_config.to_dict()
    return _defaults(values, model.config.to_dict(), tokenizer)


def _defaults(
    values: Mapping[str, object], config: Mapping[str, object], tokenizer: Tokenizer | WithoutTokenizer
) -> GenerationDefaults:
    if values.get("eos_token_id") is None:
        values = {**values, "eos_token_id": config.get("eos_token_id")}
    defaults = GenerationDefaults.from_json(values)
    return defaults if defaults.eos_token_ids else replace(defaults, eos_token_ids=tokenizer.eos_token_ids)
