"""A micro-batch as the code inside a model sees it: its tokens, and where each group keeps their memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor
from torch._C import DisableTorchFunction

from headrace.attention.ragged import AttentionBackend, Integers, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.kv_cache.pools import KVPools
from headrace.models.brought_experts import BroughtExperts, ExpertTensors
from headrace.models.coroutine import current_context, suspend
from headrace.models.layer_table import LengthRule
from headrace.models.transformers_api import ForeignModule
from headrace.schedule.steps import Point


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StateBatch:
    """Chunks of equal length that start alike, so that one call of a state mixer serves them all.

    Attributes:
        tokens: (R, n) places among the packed tokens.
        sources: (R,) slots to read, or None where every chunk starts from the zero state.
        targets: (R,) slots to write.
    """

    tokens: Tensor
    sources: Tensor | None
    targets: Tensor


class KVStored(Exception):  # noqa: N818
    """Keys and values of all tokens are where they belong, and nothing else was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LastTokens:
    """The last ones of some chunks.

    Attributes:
        counts: (C,) how many of each chunk.
        tokens: (R,) their places among the packed tokens.
    """

    counts: Integers
    tokens: Tensor

    def at_least_one(self, num_tokens: int) -> LastTokens:
        """Returns the same, or the very last of `num_tokens` packed ones where there is none."""
        if len(self.tokens):
            return self
        counts = self.counts.copy()
        counts[-1] = 1
        return LastTokens(counts=counts, tokens=self.tokens.new_tensor([num_tokens - 1]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatchContext:
    """One micro-batch of a sweep.

    Attributes:
        token_ids, positions: (1, T).
        wanted: the tokens whose logits are.
        layouts: per KV group: the ragged layout, or the batches of a state group.
        waits: points at which this micro-batch really suspends; the others are passed without a stop.
        row_lengths: (T,) how long each token's row was when `generate` would have computed it (`LengthRule`).
        only_stores: attention ends with `KVStored`, before it attends.
        skipped_layers: layers that hand on their input; not empty only where memory is probed.
        brought: per layer whose KV is not in the pools, while it can be attended over: pages, and a layout of them.
        routing: per layer at whose experts the micro-batch waits: (T, k), which experts each token goes to.
        experts: per layer whose experts live elsewhere, from their arrival until they run: those of `routing`.
        waiting: what it goes on with, while it waits.
        embedded: its embedded tokens, which many models keep to the end of their layers.
    """

    token_ids: Tensor
    positions: Tensor
    wanted: LastTokens
    layouts: tuple[RaggedLayout | list[StateBatch], ...]
    pools: KVPools
    attention: AttentionBackend
    waits: frozenset[Point]
    row_lengths: Integers
    only_stores: bool = False
    skipped_layers: frozenset[int] = frozenset()
    brought: dict[int, tuple[KVPages, RaggedLayout]] = field(default_factory=dict)
    routing: dict[int, Tensor] = field(default_factory=dict)
    experts: dict[int, ExpertTensors] = field(default_factory=dict)
    waiting: list[Tensor] = field(default_factory=list)
    embedded: list[ReferenceType[Tensor]] = field(default_factory=list)

    def reach(self, point: Point, waiting: Tensor | None = None) -> None:
        """Waits at `point`, if that is one of `waits`; goes on with `waiting` then."""
        if point in self.waits:
            if waiting is not None:
                self.waiting.append(waiting)
            try:
                suspend(point)
            finally:
                self.waiting.clear()

    def kept(self) -> list[Tensor]:
        """Returns the activations that it keeps while it waits before a layer, and does not look at."""
        return [*self.waiting, *(tensor for tensor in (own() for own in self.embedded) if tensor is not None)]

    def mix_experts(self, module: ForeignModule, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Waits until the experts in `chosen` (T, k) are there, then runs the model's own code of an experts module.

        Args:
            hidden: (T, E). weights: (T, k).
        """
        layer = module.headrace_layer
        self.routing[layer] = chosen
        self.reach(Point("experts", layer))
        del self.routing[layer]
        brought = self.experts.pop(layer, None)
        experts = module if brought is None else BroughtExperts(module, brought)
        mixed: Tensor = type(module).forward.__wrapped__(experts, hidden, chosen, weights)
        return mixed

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, rule: AttentionRule) -> Tensor:
        """Stores new keys (T, K, D) and values (T, K, V), then attends with query (T, H, D) -> (T, H, V)."""
        return self._attend(layer, query, keys, values, rule)

    def attend_latents(self, layer: int, query: Tensor, keys: Tensor, rank: int, rule: AttentionRule) -> Tensor:
        """Does the same where the first `rank` numbers of the one key head (T, 1, D) are its value, too."""
        return self._attend(layer, query, keys, None, rule)

    def by_length(self, rule: LengthRule) -> list[tuple[int, Tensor]]:
        """Returns the packed tokens (N,) of rows that are turned alike, with a length of theirs."""
        lengths = self.row_lengths
        long = lengths if rule.each_length else lengths.max()
        classes = np.where(lengths > rule.threshold, long, 1)
        device = self.positions.device
        return [
            (int(length), torch.from_numpy(np.flatnonzero(classes == length)).to(device))
            for length in np.unique(classes)
        ]

    def state_batches(self, layer: int) -> list[StateBatch]:
        """Returns the chunks of the micro-batch as a state layer runs them, in order."""
        batches = self.layouts[self.pools.group_of[layer]]
        assert isinstance(batches, list)
        return batches

    def load_state(self, layer: int, batch: StateBatch) -> tuple[Tensor, Tensor] | None:
        """Returns copies of a batch's convolution and recurrent states; None where it starts from the zero state."""
        if batch.sources is None:
            return None
        slots = self.pools.slots(layer)
        return slots.conv[batch.sources], slots.recurrent[batch.sources]

    def store_state(self, layer: int, batch: StateBatch, conv: Tensor, recurrent: Tensor) -> None:
        """Keeps a batch's states as its sequences leave the layer."""
        slots = self.pools.slots(layer)
        slots.conv[batch.targets] = conv
        slots.recurrent[batch.targets] = recurrent.to(slots.recurrent.dtype)

    def _attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor | None, rule: AttentionRule) -> Tensor:
        """Works where the pages are, which may be the host of the device that computes everything else."""
        self.reach(Point("attention", layer))
        pages, layout = self.brought.get(layer) or self._kept(layer)
        with DisableTorchFunction():  # there is no product of a linear layer in here, and looking for it takes time
            place = pages.keys.device
            pages.write(keys.to(place), None if values is None else values.to(place), layout)
            if self.only_stores:
                raise KVStored
            return self.attention.attend(query.to(place), pages, layout, rule).to(query.device)

    def _kept(self, layer: int) -> tuple[KVPages, RaggedLayout]:
        layout = self.layouts[self.pools.group_of[layer]]
        assert isinstance(layout, RaggedLayout)
        return self.pools.pages(layer), layout


def current() -> MicroBatchContext:
    """Returns the micro-batch whose coroutine this code runs in."""
    context = current_context()
    assert isinstance(context, MicroBatchContext)
    return context
