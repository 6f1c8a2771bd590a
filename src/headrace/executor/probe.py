"""Measures what a sweep allocates by itself, so that a budget can reserve it before the KV cache takes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.attention.ragged import AttentionBackend
from headrace.compression.kv_codec import KVCodec
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor, Sampled
from headrace.executor.expert_stream import Experts, ResidentExperts
from headrace.executor.pools import build_pools
from headrace.executor.weight_stream import ResidentWeights, Weights
from headrace.models.takeover import EngineModel
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow, sample
from headrace.schedule.steps import Point, PointKind
from headrace.scheduler.sweep import Chunk, MicroBatch, Sweep
from headrace.storage.device_memory import device_peak_growth_bytes

WEIGHT_POINTS: frozenset[PointKind] = frozenset({"embedding", "layer", "head"})
"""Where micro-batches wait for weights."""
_IN_LAYERS: frozenset[PointKind] = frozenset({"layer", "attention", "experts"})
_SLACK = 1.15
"""Peaks differ between runs: what libraries keep for later, rows of other lengths than the probe's."""
_PIECE_TOKENS = 128
"""More queries than this are not attended at once, so that a longer chunk at the end of a context takes no more."""
_MEASURED_CONTEXT = 2048
"""What attention takes grows in proportion to the context, so that one is enough to be measured."""
_INDEX_BYTES = 9
"""Per row and position of its context: the key's position, and whether it is seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationPeak:
    """What a sweep allocates by itself.

    Attributes:
        sweep_bytes: whatever the context.
        bytes_per_position: of the longest row's context, in addition.
    """

    sweep_bytes: int
    bytes_per_position: float

    def at(self, context_tokens: int) -> int:
        """Returns the bytes for rows of up to `context_tokens`."""
        return self.sweep_bytes + int(self.bytes_per_position * context_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationProbe:
    """Runs sweeps over one layer of each kind, on pools that hold just these.

    Attributes:
        weights, experts: where the layers' weights come from.
        points: the model's points that have weights or experts that are brought, in order.
        products: entered while forwards run.
        codec: of keys and values.
    """

    model: EngineModel
    attention: AttentionBackend
    device: torch.device
    dtype: torch.dtype
    block_tokens: int
    points: Sequence[Point]
    weights: Weights = field(default_factory=ResidentWeights)
    experts: Experts = field(default_factory=ResidentExperts)
    products: AbstractContextManager[object] = field(default_factory=nullcontext)
    codec: KVCodec | None = None

    def measure(self, num_tokens: int, num_sequences: int) -> ActivationPeak:
        """Returns what to reserve for sweeps of up to `num_tokens` tokens that sample up to `num_sequences` rows.

        Measured are a sweep of one prompt (or more, where it is too long for the model) and many decoding rows, all of
        them at their beginning, and a chunk at the end of a long context; rows that decode there need some numbers more
        for each position.
        """
        num_sequences = min(num_sequences, num_tokens)
        longest = self.model.table.max_positions or num_tokens
        prompts = _cut(num_tokens - num_sequences + 1, longest)
        sweep = self._growth([*((0, length) for length in prompts), *[(0, 1)] * (num_sequences - 1)])
        measured = min(longest, _MEASURED_CONTEXT)
        length = min(measured, num_tokens, _PIECE_TOKENS)
        past = self._growth([(measured - length, length)])
        per_position = _SLACK * past / measured + _INDEX_BYTES * num_sequences + num_tokens
        return ActivationPeak(sweep_bytes=int(_SLACK * sweep), bytes_per_position=per_position)

    def _growth(self, chunks: Sequence[tuple[int, int]]) -> int:
        """Returns the growth of memory in a sweep of chunks of (start, length)."""
        sweep, num_blocks = self._sweep(chunks)
        executor = self._executor(num_blocks, num_slots=len(chunks))
        return device_peak_growth_bytes(self.device, lambda: executor.run(sweep, _sample_expensively))

    def _sweep(self, spans: Sequence[tuple[int, int]]) -> tuple[Sweep, int]:
        """Returns a sweep and the number of its blocks, few of them, since what they hold does not matter.

        All chunks share block 0 and those after it; what lies before a chunk is read from block 0 alone.
        """
        chunks: list[Chunk] = []
        num_blocks = 0
        for row, (start, length) in enumerate(spans):
            past, end = start // self.block_tokens, -(-(start + length) // self.block_tokens)
            blocks = (0,) * past + tuple(range(end - past))
            num_blocks = max(num_blocks, end - past)
            # A state slot of its own to read and write: rows that go on take more than rows that begin.
            tables = tuple((row, row) if group.kind == "state" else blocks for group in self.model.table.groups)
            chunk = Chunk(sequence_id=row, start=start, token_ids=(0,) * length, block_tables=tables, samples=True)
            chunks.append(chunk)
        return Sweep(sweep_id=0, micro_batches=(MicroBatch(chunks=tuple(chunks)),), copies=()), num_blocks

    def _executor(self, num_blocks: int, num_slots: int) -> Executor:
        table = self.model.table
        sizes = [num_slots if group.kind == "state" else num_blocks for group in table.groups]
        first: dict[object, int] = {}
        for index, layer in enumerate(table.layers):
            first.setdefault(layer, index)
        skipped = frozenset(range(len(table.layers))) - frozenset(first.values())
        contexts = ContextBuilder(
            groups=table.groups,
            block_tokens=self.block_tokens,
            pools=build_pools(table, sizes, self.block_tokens, self.dtype, self.device, codec=self.codec),
            attention=self.attention,
            device=self.device,
            skipped_layers=skipped,
        )
        points = [point for point in self.points if point.kind not in _IN_LAYERS or point.layer not in skipped]
        return Executor(
            model=self.model,
            points=points,
            contexts=contexts,
            weights=self.weights,
            experts=self.experts,
            products=self.products,
        )


def _cut(num_tokens: int, longest: int) -> list[int]:
    return [min(longest, num_tokens - start) for start in range(0, num_tokens, longest)]


def _sample_expensively(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
    """Samples in the ways that take most memory: a ranked nucleus, the whole vocabulary, and log-probabilities."""
    ways = (
        ResolvedSampling(max_tokens=1, temperature=1.0, top_p=0.999, logprobs=20),
        ResolvedSampling(max_tokens=1, temperature=1.0),
    )
    ids = [chunk.sequence_id for chunk in chunks]
    rows = [SamplingRow(sampling=ways[id_ % 2], sample_index=0, step=0, seed=id_) for id_ in ids]
    return {id_: (token,) for id_, token in zip(ids, sample(logits, rows), strict=True)}
