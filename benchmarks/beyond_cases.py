"""The models and budgets of `beyond_memory`."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.llama_shape import LlamaShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model under a budget that does not hold it, and rows to answer.

    Attributes:
        memory: as `--memory` takes it; None for the least with which Headrace starts here.
        most_rows: unless `--rows` says otherwise, twice as many rows as run at a time, but no more than this.
    """

    shape: LlamaShape
    memory: str | None
    prompt_tokens: int
    new_tokens: int
    most_rows: int
    batch_sizes: tuple[int, ...] = (1, 8, 32)


CASES = {
    "tiny": Case(
        shape=LlamaShape(
            vocab_size=2048,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=16,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        ),
        memory=None,
        prompt_tokens=16,
        new_tokens=4,
        most_rows=8,
        batch_sizes=(1, 2),
    ),
    "1b": Case(
        shape=LlamaShape(
            vocab_size=128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            max_position_embeddings=131_072,
            tie_word_embeddings=True,
        ),
        memory="1.5GiB",
        prompt_tokens=128,
        new_tokens=32,
        most_rows=96,
    ),
    "7b": Case(
        shape=LlamaShape(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
        memory="5.5GiB",
        prompt_tokens=128,
        new_tokens=32,
        most_rows=192,
    ),
}
"""`1b` and `7b` have the shapes of Llama-3.2-1B and Llama-2-7B; `tiny` shows within a minute that all of it runs."""
