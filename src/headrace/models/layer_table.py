"""What each layer keeps between sweeps and where it waits: the torch-free description of a model.

Scheduler, pools, plans and `inspect` all read this table; `models/observation.py` finds what is in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.compression.kv_codec import KVCodec
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.page_shape import PageShape
from headrace.schedule.steps import Point

STATE_BYTES = 4
"""Recurrent states are kept in fp32, as the architectures compute them; convolution states in the model's dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """Keys and values that a token leaves in one layer.

    Attributes:
        num_kv_heads: K. key_width: D.
        value_width: V; for `latent` the first V numbers of the key are the value, and nothing else is stored.
        latent: multi-head latent attention (MLA), kept compressed and attended in the absorbed form.
        window: positions that a token reads, itself included; None: all.
    """

    num_kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False
    window: int | None = None

    def page_shape(self, codec: KVCodec | None) -> PageShape:
        """Returns what is kept of each token, as numbers, or in codes."""
        return PageShape(
            num_kv_heads=self.num_kv_heads,
            key_width=self.key_width,
            value_width=self.value_width,
            latent=self.latent,
            codec=codec,
        )

    def token_bytes(self, dtype_bytes: int, codec: KVCodec | None) -> int:
        """Returns the bytes that one token stores in one layer."""
        return self.page_shape(codec).token_bytes(dtype_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """The state that one sequence keeps in one layer, however long it is.

    Attributes:
        conv_shape: (channels, kernel size), in the model's dtype.
        recurrent_shape: in fp32.
    """

    conv_shape: tuple[int, ...]
    recurrent_shape: tuple[int, ...]

    def num_bytes(self, dtype_bytes: int) -> int:
        """Bytes of one sequence's state in one layer."""
        return math.prod(self.conv_shape) * dtype_bytes + math.prod(self.recurrent_shape) * STATE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsSpec:
    """A layer's mixture of experts, of which every token goes to `num_per_token`; shared ones are not counted."""

    num_experts: int
    num_per_token: int

    def expected_share(self, num_tokens: int) -> float:
        """Returns which share of the experts `num_tokens` tokens go to, were all experts equally likely."""
        return 1 - (1 - self.num_per_token / self.num_experts) ** num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One layer of the table. Its memory is None where it looks at each token by itself, like experts alone."""

    memory: AttentionSpec | StateSpec | None
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthRule:
    """Positions that are turned by how long a row is, as in long-RoPE and dynamic NTK.

    A token at position p of a row whose prompt has P tokens is turned as one of a row of max(P, p + 1) tokens, as
    transformers' `generate` does it, which sees the prompt at once and every further token alone.

    Attributes:
        threshold: rows of up to so many tokens are turned alike.
        each_length: longer rows are turned by their length; else they are turned alike, too.
        starts_again: `generate` computes a row again, all of it at once, when it grows beyond the threshold.
    """

    threshold: int
    each_length: bool
    starts_again: bool = False

    def salt(self, num_prompt_tokens: int) -> str:
        """Returns the same for rows that may share keys."""
        if num_prompt_tokens <= self.threshold:
            return ""
        return f"rotary {num_prompt_tokens}" if self.each_length else "rotary long"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTable:
    """The model as everything above `models` knows it.

    Attributes:
        num_heads: of queries; 0 in a model without attention.
        max_positions: None where the model has no limit.
        length_rule: None where positions are turned alike in rows of any length.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    max_positions: int | None
    layers: tuple[LayerSpec, ...]
    length_rule: LengthRule | None = None

    @property
    def groups(self) -> tuple[KVGroup, ...]:
        """Layers with equal memory, in order of first appearance."""
        members: dict[AttentionSpec | StateSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if layer.memory is not None:
                members.setdefault(layer.memory, []).append(index)
        return tuple(
            KVGroup(
                group_id=group_id,
                layers=tuple(indices),
                kind="state" if isinstance(memory, StateSpec) else "full" if memory.window is None else "sliding",
                window=None if isinstance(memory, StateSpec) else memory.window,
            )
            for group_id, (memory, indices) in enumerate(members.items())
        )

    def memory_of(self, group: KVGroup) -> AttentionSpec | StateSpec:
        """What each layer of `group` keeps."""
        memory = self.layers[group.layers[0]].memory
        assert memory is not None, "layers of a group keep something"
        return memory

    def attention_of(self, layer: int) -> AttentionSpec:
        """What a token leaves in `layer`, an attention layer."""
        memory = self.layers[layer].memory
        assert isinstance(memory, AttentionSpec), f"layer {layer} keeps no keys and values"
        return memory

    def block_bytes(self, group: KVGroup, block_tokens: int, dtype_bytes: int, codec: KVCodec | None = None) -> int:
        """Bytes of one block of `group`, over all of its layers; for a state group, of one sequence's slot."""
        memory = self.memory_of(group)
        if isinstance(memory, StateSpec):
            return len(group.layers) * memory.num_bytes(dtype_bytes)
        return len(group.layers) * block_tokens * memory.token_bytes(dtype_bytes, codec)

    def group_of(self) -> dict[int, int]:
        """The group of each layer that keeps something."""
        return {layer: group.group_id for group in self.groups for layer in group.layers}

    def kv_bytes(self, num_tokens: int, dtype_bytes: int, codec: KVCodec | None = None) -> int:
        """Bytes that one sequence of `num_tokens` keeps: windows end to grow, states never do."""
        total = 0
        for layer in self.layers:
            if isinstance(layer.memory, StateSpec):
                total += layer.memory.num_bytes(dtype_bytes)
            elif isinstance(layer.memory, AttentionSpec):
                kept = num_tokens if layer.memory.window is None else min(num_tokens, layer.memory.window)
                total += kept * layer.memory.token_bytes(dtype_bytes, codec)
        return total

    def points(self) -> list[Point]:
        """Where a micro-batch may wait for bytes, in the order in which it comes there."""
        points = [Point("embedding")]
        for index, layer in enumerate(self.layers):
            points.append(Point("layer", index))
            if isinstance(layer.memory, AttentionSpec):
                points.append(Point("attention", index))
            if layer.experts is not None:
                points.append(Point("experts", index))
        return [*points, Point("head")]
