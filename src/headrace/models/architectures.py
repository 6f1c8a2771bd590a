"""Which architectures run exactly, and why the others do not. Torch-free.

A type is exact once `tests/parity/test_all_types.py` has shown that its tokens are those of transformers' `generate`,
however rows run together, on a tiny model of `tests/tiny_types.py`. docs/models.md is written from that.
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
        "bamba",
        "bart",
        "beam",
        "bert",
        "bert-generation",
        "bigbird_pegasus",
        "biogpt",
        "bitnet",
        "blenderbot",
        "blenderbot-small",
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
        "fuyu",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "gemma4_unified_text",
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
        "granitemoehybrid",
        "granitemoeshared",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
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
        "lfm2_moe",
        "lfm3",
        "llama",
        "llama4",
        "llama4_text",
        "mamba",
        "mamba2",
        "marian",
        "mbart",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "modernbert-decoder",
        "mpt",
        "nanochat",
        "nemotron",
        "nemotron_h",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "opt",
        "pegasus",
        "persimmon",
        "phi",
        "phi3",
        "phimoe",
        "plbart",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
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

_REASONS: dict[str, tuple[str, ...]] = {
    "it reads weights of its embedding beside the embedding; gemma4_text runs": ("gemma4",),
    "an indexer keeps keys of its own beside those of a layer, and chooses which tokens are read": (
        "axk2",
        "deepseek_v32",
        "deepseek_v4",
        "glm_moe_dsa",
        "hy_v4",
    ),
    "it computes attention inside of its own modules, on a mask of all pairs": (
        "big_bird",
        "cpmant",
        "git",
        "gpt_neox_japanese",
        "megatron-bert",
        "mvp",
        "rembert",
        "roformer",
        "trocr",
        "xglm",
    ),
    "it reads bytes in patches of varying length": ("blt",),
    "it is an embedding model": ("cohere_compass_text",),
    "its experts choose their tokens inside of a module of its own": ("dbrx",),
    "a layer keeps more than one thing: there is one place per layer": (
        "diffllama",
        "falcon_h1",
        "inkling2_text",
        "inkling_text",
        "longcat_flash",
        "zaya",
    ),
    "its attention mask depends on values": ("doge",),
    "it takes images or sound beside text; not verified for text alone": (
        "dots3_note",
        "emu3",
        "gemma4_unified",
        "got_ocr2",
        "mllama",
        "moss_transcribe_diarize",
        "phi4_multimodal",
        "whisper",
    ),
    "heads differ from layer to layer by a configuration that is not verified": ("dots3_note_text",),
    "its vision tower needs timm, even for text alone; gemma3n_text runs": ("gemma3n",),
    "it drafts tokens for another model": (
        "gemma4_assistant",
        "gemma4_unified_assistant",
    ),
    "it runs its layers again and again, with a cache class of its own": ("hrm_text",),
    "its experts sort tokens by value inside of a module of its own": ("jetmoe",),
    "its linear attention needs a cache class of its own": ("minimax",),
    "it generates codes of sound, not text": (
        "moshi",
        "musicgen",
        "musicgen_melody",
    ),
    "it generates without a cache of keys and values": (
        "openai-gpt",
        "reformer",
        "xlm",
        "xlnet",
    ),
    "it predicts several tokens at a time": ("prophetnet",),
    "not verified: an experimental architecture": (
        "qwen4_exp",
        "qwen4_exp_text",
    ),
    "its state is kept by a protocol of its own": (
        "recurrent_gemma",
        "rwkv",
        "xlstm",
    ),
    "it has to be told a language before it runs": ("xmod",),
    "layers share modules, so that no layer owns its weights": (
        "zamba",
        "zamba2",
    ),
}
REFUSED: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}
"""Every other causal language model that transformers has, and why it is refused."""


_trusted: set[str] = set()


def trust(model_type: str) -> None:
    """Lets a type run that nobody has verified: its code comes with a checkpoint that the user trusts."""
    _trusted.add(model_type)


class Configuration(Protocol):
    """The part of a transformers configuration that every architecture has."""

    @property
    def model_type(self) -> str: ...


def check_architecture(config: Configuration) -> None:
    """Does nothing where the model runs exactly.

    Raises:
        UnsupportedModelError: the architecture, or a variant that its configuration asks for, does not.
    """
    model_type = config.model_type
    if model_type in REFUSED:
        raise UnsupportedModelError(
            f"architecture {model_type!r} is refused: {REFUSED[model_type]}; docs/models.md lists those that run"
        )
    if model_type not in EXACT and model_type not in _trusted:
        raise UnsupportedModelError(
            f"architecture {model_type!r} is not verified to run exactly, so it is refused; "
            "docs/models.md lists those that run, CONTRIBUTING.md says how to add one"
        )
