"""Which architectures run exactly. Torch-free.

A type is here once the parity tests have shown that its tokens are those of transformers' `generate`, however rows run
together (`tests/parity/test_families.py`, tiny models of `tests/tiny_models.py`); everything else is refused by name.
"""

from __future__ import annotations

from typing import Protocol

from headrace.errors import UnsupportedModelError

EXACT = frozenset(
    {
        "bloom",
        "deepseek_v2",
        "deepseek_v3",
        "gemma2",
        "gemma3_text",
        "llama",
        "mamba2",
        "mistral",
        "mixtral",
        "opt",
        "qwen2",
        "qwen3",
        "qwen3_next",
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
