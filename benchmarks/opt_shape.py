"""The sizes of an OPT. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

_OFFSET = 2
"""Rows that OPT's table of positions has before the first one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptShape:
    """What decides how many bytes and operations an OPT has; named as in its config.json."""

    model_type: ClassVar[str] = "opt"
    architecture: ClassVar[str] = "OPTForCausalLM"

    vocab_size: int
    hidden_size: int
    word_embed_proj_dim: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int

    def files(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Yields the tensors of each file of a checkpoint, and their sizes; the head is the embedding."""
        decoder, width = "model.decoder.", self.hidden_size
        yield {
            decoder + "embed_tokens.weight": (self.vocab_size, width),
            decoder + "embed_positions.weight": (self.max_position_embeddings + _OFFSET, width),
        }
        matrices = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        matrices |= {"fc1": (self.ffn_dim, width), "fc2": (width, self.ffn_dim)}
        for layer in range(self.num_hidden_layers):
            prefix = f"{decoder}layers.{layer}."
            weights = {f"{prefix}{name}.weight": size for name, size in matrices.items()}
            biases = {f"{prefix}{name}.bias": size[:1] for name, size in matrices.items()}
            yield (
                weights
                | biases
                | _norm(prefix + "self_attn_layer_norm", width)
                | _norm(prefix + "final_layer_norm", width)
            )
        yield _norm(decoder + "final_layer_norm", width)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
