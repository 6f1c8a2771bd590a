"""Which architectures run exactly. Torch-free.

A type is here once the parity tests have shown that its tokens are those of transformers' `generate`, however rows run
together (`tests/parity/test_families.py`, tiny models of `tests/tiny_models.py`); everything else is refused by name.
"""

from __future__ import annotations

from typing import Protocol

from headrace.errors import UnsupportedModelError

EXACT = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "axk1",
        "bailing_hybrid",
        "beam",
        "bert",
        "bert-generation",
        "biogpt",
        "bitnet",
        "bloom",
        "camembert",
        "codegen",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "ctrl",
        "cwm",
        "data2vec-text",
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "electra",
        "ernie",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "falcon",
        "falcon_mamba",
        "flex_olmo",
        "flint",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt-sw3",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "helium",
        "hy_v3",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "jamba",
        "kimi_linear",
        "kolibri1",
        "laguna",
        "lfm2",
        "lfm3",
        "llama",
        "llama4_text",
        "mamba",
        "mamba2",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral3",
        "mistral",
        "mixtral",
        "modernbert-decoder",
        "mpt",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "xlm-roberta",
        "xlm-roberta-xl",
        "youtu",
    }
)


class Configuration(Protocol):
    """The part of a transformers configuration that every architecture has."""

    @property
    def model_type(self) -> str: ...


def check_architecture(config: Configuration) -> None:
    """Does nothing where the model runs exactly.

    Raises:
        UnsupportedModelError: the architecture, or a variant that its configuration asks for, does not.
    """
    if config.model_type not in EXACT:
        raise UnsupportedModelError(
            f"architecture {config.model_type!r} is not verified to run exactly, so it is refused; "
            f"this version runs {', '.join(sorted(EXACT))}"
        )
