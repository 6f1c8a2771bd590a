"""Architectures whose code comes with the checkpoint: run only where the user says so, and then as if built in.

They are not verified to run exactly. What gives attention, masks, experts and states to transformers' own interfaces is
taken over as the rest is; what does not, leaves no keys to be seen when layers are observed, and is refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

from headrace.checkpoint.checkpoint import read_config
from headrace.errors import UnsupportedModelError, one_line
from headrace.models.architectures import trust
from headrace.models.transformers_api import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    get_class_from_dynamic_module,
)

logger = logging.getLogger(__name__)


def register_remote_code(path: Path) -> None:
    """Makes the classes in the checkpoint at `path` known to transformers; nothing to do for what it has built in.

    Raises:
        CheckpointError: config.json is missing or damaged.
        UnsupportedModelError: the checkpoint brings no code of a causal language model, or code that cannot be read.
    """
    config = read_config(path)
    model_type, sources = config.get("model_type"), config.get("auto_map")
    if not isinstance(model_type, str) or not isinstance(sources, dict) or model_type in CONFIG_MAPPING:
        return
    try:
        config_class, model_class = (
            get_class_from_dynamic_module(sources[name], path, local_files_only=True)
            for name in ("AutoConfig", "AutoModelForCausalLM")
        )
        AutoConfig.register(model_type, config_class)
        AutoModelForCausalLM.register(config_class, model_class)
    # The code is anybody's.
    except Exception as error:
        raise UnsupportedModelError(
            f"{path / 'config.json'}: the code that comes with the checkpoint cannot be used: {type(error).__name__}: "
            f"{one_line(error)}; see that all of its files and packages are there, or choose another model"
        ) from error
    trust(model_type)
    logger.warning(
        "%s: runs the code that comes with it; that its answers are those of transformers is not verified", path.name
    )
