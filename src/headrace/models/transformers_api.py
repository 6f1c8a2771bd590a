"""The one door to transformers: every name of it that Headrace uses, public or not, is imported here.

Imports and re-exports only. A name that moves in a new transformers release is repaired in this file.
"""

from __future__ import annotations

from typing import Any

# --- Loading: configuration, construction, and the mapping from hub tensor names to parameters --------------------
# --- end of the loading section -----------------------------------------------------------------------------------
# --- Running: the registries through which attention, masks and experts are taken over; the tokenizer ---------------
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TokenizersBackend,
)
from transformers import __version__ as transformers_version
from transformers.activations import GELUTanh, SiLUActivation
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.moe import ExpertsInterface
from transformers.masking_utils import causal_mask_function
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb as _falcon_rotary
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as _build_mpt_alibi
from transformers.pytorch_utils import Conv1D
from transformers.utils.chat_template_utils import _compile_jinja_template

# A module of one architecture's own class. torch types every attribute of a module as `Tensor | Module`, and the
# classes are not to be imported one by one; what is read of them is held by the parity tests instead.
ForeignModule = Any

# Annotated as taking a module; it takes (number of heads, device) and returns the slopes (H,).
alibi_slopes: Any = _get_alibi_slopes
# Untyped: (query, key, cos, sin) -> (query, key), and (number of heads, length) -> (H, 1, length).
falcon_rotary: Any = _falcon_rotary
mpt_alibi: Any = _build_mpt_alibi
# Untyped: takes a chat template and compiles it, with what transformers adds to Jinja.
compile_chat_template: Any = _compile_jinja_template

__all__ = [
    "CONFIG_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AttentionInterface",
    "AttentionMaskInterface",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "Concatenate",
    "Conv1D",
    "ExpertsInterface",
    "ForeignModule",
    "GELUTanh",
    "MergeModulelist",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "PretrainedConfig",
    "SiLUActivation",
    "TokenizersBackend",
    "WeightConverter",
    "WeightRenaming",
    "alibi_slopes",
    "causal_mask_function",
    "compile_chat_template",
    "falcon_rotary",
    "get_class_from_dynamic_module",
    "get_model_conversion_mapping",
    "mpt_alibi",
    "rename_source_key",
    "transformers_version",
]
