"""The models of `cpu_resident`."""

from __future__ import annotations

from benchmarks.beyond_cases import CASES
from benchmarks.dummy_model import Shape
from benchmarks.opt_shape import OptShape

SHAPES: dict[str, Shape] = {
    "llama-1b": CASES["1b"].shape,
    "opt-1.3b": OptShape(
        vocab_size=50_272,
        hidden_size=2048,
        word_embed_proj_dim=2048,
        ffn_dim=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        max_position_embeddings=2048,
    ),
    "tiny-llama": CASES["tiny"].shape,
    "tiny-opt": OptShape(
        vocab_size=2048,
        hidden_size=512,
        word_embed_proj_dim=512,
        ffn_dim=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=256,
    ),
}
"""Llama-3.2-1B's and OPT-1.3B's shapes; the tiny ones show within a minute that all of it runs."""
