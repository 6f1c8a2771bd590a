"""A model without its weights: modules built by transformers, parameters on the meta device, buffers real."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.checkpoint.tensors import CONVERTIBLE_DTYPES
from headrace.errors import CorruptCheckpointError, UnsupportedModelError, one_line
from headrace.kernels.library import library
from headrace.models.choices import is_slow
from headrace.models.transformers_api import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    ForeignModule,
    PretrainedConfig,
    PreTrainedModel,
    transformers_version,
)
from headrace.units import format_bytes

_WIDENED_SHARE = 1 / 3
"""Weights are widened to float32, on CPUs that are slow in half precision, if they then take at most this much."""


_MAX_BUFFER_BYTES = 4 * 1024**3
"""The most that tables beside the weights may take. GPT-Neo's masks, 2,048 x 2,048 bytes in 24 layers, take 0.1 GB."""

# What a number of a configuration is called, the least and the most that it may be. Beyond these a model would not be
# refused but built for hours: the deepest that was ever trained has 1,000 layers.
_LIMITS = (
    (re.compile(r"(n|num)_(\w+_)?layers?"), 0, 2_000),
    (re.compile(r"(n|num)_(\w+_)?experts"), 0, 100_000),
    (re.compile(r"max_position_embeddings|seq_length|max_seq_len|n_positions"), 1, 2**40),
)


def build_skeleton(path: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """Builds the model that `path`/config.json describes, in eval mode, without reading or allocating its weights.

    A parameter's dtype on the meta device is the one it is to be loaded in: `dtype`, unless the architecture asks for
    float32. Persistent buffers are real but hold initial values until they are loaded. Code of the checkpoint's own is
    not looked for: see `headrace.models.remote_code`.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError: config.json is missing or damaged.
        UnsupportedModelError: transformers does not know the model type, or not as a causal language model.
    """
    model = build_outline(path, dtype)
    make_buffers(model, path)
    return model


def build_outline(path: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """Builds the model as `build_skeleton` does, but buffers are on the meta device, too: for its shapes alone.

    Costs no memory even where an architecture writes zeros into its parameters while it is built.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError: as `build_skeleton`.
    """
    config = read_model_config(path)
    try:
        return outline_of(config, dtype)
    # What an architecture raises on values that do not go together is not documented.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{Path(path) / 'config.json'}: transformers {transformers_version} cannot build this model: "
            f"{type(error).__name__}: {one_line(error)}; correct the configuration, or download it again"
        ) from error


def outline_of(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Builds the model that `config` describes, on the meta device; `config` may become its own."""
    with torch.device("meta"):
        model = _construct(config, dtype)
    _keep_in_float32(model, dtype)
    return model


def make_buffers(model: PreTrainedModel, path: Path | str) -> None:
    """Gives the outline of the model at `path` its buffers: non-persistent ones as they are computed, others to load.

    Raises:
        CorruptCheckpointError: their sizes, which no weight confirms, cannot be.
    """
    num_bytes = sum(buffer.nbytes for buffer in model.buffers())
    if num_bytes > _MAX_BUFFER_BYTES:
        raise CorruptCheckpointError(
            f"{Path(path) / 'config.json'}: its positions make tables of {format_bytes(num_bytes)} beside the weights; "
            f"expected at most {format_bytes(_MAX_BUFFER_BYTES)}; correct the configuration, or download it again"
        )
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    _compute_buffers(model)


def read_model_config(path: Path | str) -> PretrainedConfig:
    """Reads `path`/config.json into transformers' own configuration of that architecture.

    Where transformers' causal language model is the text part of a model that sees or hears, too, it is that part's.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError: config.json is missing or damaged.
        UnsupportedModelError: transformers does not know the model type, or not as a causal language model.
    """
    path = Path(path)
    values = read_config(path)
    check_model_type(path / "config.json", values)
    _check_limits(path / "config.json", values)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    # What a configuration class raises on values that cannot be is not documented.
    except Exception as error:
        raise CorruptCheckpointError(
            f"{path / 'config.json'}: transformers {transformers_version} refuses it: {one_line(error)}; "
            "correct the configuration, or download it again"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{path / 'config.json'}: model_type {config.model_type!r} is not a causal language model in transformers "
            f"{transformers_version}; expected a model that generates text; choose another model"
        )
    model_class: ForeignModule = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if config.sub_configs.get("text_config") is model_class.config_class:
        config = config.get_text_config()
    return config


def check_model_type(config_file: Path, config: dict[str, object]) -> None:
    """Raises UnsupportedModelError unless transformers has the configuration's model type built in."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"{config_file}: no model_type; expected a Hugging Face transformers configuration; "
            "use the repository's transformers form (often named ...-hf)"
        )
    if model_type in CONFIG_MAPPING:
        return
    written_by = config.get("transformers_version")
    asks = f"the configuration was written by transformers {written_by}; " if written_by else ""
    remedy = (
        "it brings its own code, which runs only with --trust-remote-code; read that code first"
        if config.get("auto_map")
        else "install a newer transformers in the range that Headrace supports, or choose another model"
    )
    raise UnsupportedModelError(
        f"{config_file}: model_type {model_type!r} is unknown to the installed transformers {transformers_version}; "
        f"{asks}{remedy}"
    )


def _check_limits(config_file: Path, values: dict[str, object]) -> None:
    """Raises CorruptCheckpointError where a number, also of a configuration within, is beyond its limits."""
    parts = [values]
    while parts:
        part = parts.pop()
        for key, value in part.items():
            if isinstance(value, dict):
                parts.append(value)
            for name, least, most in _LIMITS:
                if isinstance(value, int) and name.fullmatch(key) and not least <= value <= most:
                    raise CorruptCheckpointError(
                        f"{config_file}: {key} is {value}; expected {least} to {most:,}; "
                        "correct the configuration, or download it again"
                    )


def checkpoint_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Returns the dtype that `--dtype auto` means: what config.json says, else what most bytes are stored in."""
    for key in ("dtype", "torch_dtype"):
        name = checkpoint.config.get(key)
        if isinstance(name, str) and name.removeprefix("torch.") in CONVERTIBLE_DTYPES:
            return _torch_dtype(name.removeprefix("torch."))
    num_bytes: Counter[str] = Counter()
    for entry in checkpoint.entries.values():
        if entry.dtype in CONVERTIBLE_DTYPES:
            num_bytes[entry.dtype] += entry.num_bytes
    return _torch_dtype(num_bytes.most_common(1)[0][0]) if num_bytes else torch.float32


def automatic_dtype(checkpoint: Checkpoint, device: torch.device, limit_bytes: int) -> torch.dtype:
    """Returns the checkpoint's own dtype; float32 where torch multiplies that one slowly and `limit_bytes` allow it."""
    own = checkpoint_dtype(checkpoint)
    if not is_slow(own, device) or library() is not None:
        return own
    widened_bytes = checkpoint.num_bytes * torch.float32.itemsize // own.itemsize
    return torch.float32 if widened_bytes <= _WIDENED_SHARE * limit_bytes else own


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _construct(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype, trust_remote_code=False
    )
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _compute_buffers(model: PreTrainedModel) -> None:
    """Computes the buffers again with float32 as the default dtype, as `from_pretrained` does.

    During construction the default is the model's dtype, in which position tables (GPT-J's) lose digits. Parameters are
    on the meta device, where initialising them costs nothing.
    """
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]
    model.initialize_weights()  # type: ignore[no-untyped-call]


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives those parameters float32 that the architecture never wants in half precision, as `from_pretrained` does."""
    patterns: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        patterns |= set(model._keep_in_fp32_modules_strict or ())
    if dtype is torch.float16:
        patterns |= set(model._keep_in_fp32_modules or ())
    if not patterns:
        return
    wanted = re.compile("|".join(pattern.replace("*", ".*") for pattern in sorted(patterns)))
    for module_name, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point() and wanted.search(f"{module_name}.{name}"):
                value = tensor.detach().to(torch.float32)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(value, requires_grad=False) if is_parameter else value)
