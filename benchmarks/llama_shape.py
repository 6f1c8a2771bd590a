"""The sizes of a Llama. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaShape:
    """What decides how many bytes and operations a Llama has; named as in its config.json."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Returns the matrices of one layer, as (outputs, inputs)."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }

    def files(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Yields the tensors of each file of a checkpoint, and their sizes."""
        norm = (self.hidden_size,)
        yield {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            norms = {prefix + f"{name}_layernorm.weight": norm for name in ("input", "post_attention")}
            yield norms | {prefix + name + ".weight": size for name, size in self.layer_matrices().items()}
        yield {"model.norm.weight": norm}
        if not self.tie_word_embeddings:
            yield {"lm_head.weight": (self.vocab_size, self.hidden_size)}

    @property
    def layer_numbers(self) -> int:
        """Numbers in the matrices of one layer."""
        return sum(outputs * inputs for outputs, inputs in self.layer_matrices().values())

    @property
    def head_numbers(self) -> int:
        return self.vocab_size * self.hidden_size
