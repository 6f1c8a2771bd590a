"""The one door to transformers: every name of it that Headrace uses, public or not, is imported here.

Imports and re-exports only. A name that moves in a new transformers release is repaired in this file.
"""

from __future__ import annotations

# --- Loading: configuration, construction, and the mapping from hub tensor names to parameters --------------------
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

# --- end of the loading section -----------------------------------------------------------------------------------

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "Concatenate",
    "LoadStateDictConfig",
    "MergeModulelist",
    "PreTrainedModel",
    "PretrainedConfig",
    "WeightConverter",
    "WeightRenaming",
    "convert_and_load_state_dict_in_model",
    "get_model_conversion_mapping",
    "rename_source_key",
    "transformers_version",
]
