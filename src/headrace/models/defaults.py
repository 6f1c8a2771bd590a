"""What a checkpoint says about generation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headrace.checkpoint.checkpoint import read_config
from headrace.checkpoint.files import check_place, read_json
from headrace.errors import CorruptCheckpointError
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer
from headrace.models.transformers_api import PreTrainedModel
from headrace.sampling.parameters import GenerationDefaults


def read_generation_defaults(path: Path, tokenizer: Tokenizer | WithoutTokenizer) -> GenerationDefaults:
    """Reads `generation_config.json`; end tokens that it does not name come from config.json, else the tokenizer.

    Raises:
        CheckpointNotFoundError: the file is a link to nothing.
        CorruptCheckpointError: the file is not JSON, or a value in it cannot be.
        UnsafeCheckpointError: the file is a link that leads out of the folder.
    """
    file = path / "generation_config.json"
    values: dict[str, object] = {}
    if os.path.lexists(file):
        check_place(file, path)
        values = read_json(file)
    try:
        return _defaults(values, read_config(path), tokenizer)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error


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
