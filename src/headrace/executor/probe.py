"""Measures what a sweep allocates by itself, so that a budget can reserve it before the KV cache takes the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.attention.ragged import AttentionBackend
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor
from headrace.executor.pools import build_pools
from headrace.models.takeover import EngineModel
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow, sample
from headrace.sampling.tokens import SampledToken
from headrace.schedule.steps import PointKind
from headrace.scheduler.sweep import Chunk, MicroBatch, Sweep
from headrace.storage.device_memory import device_peak_growth_bytes

_SLACK = 1.15
"""Peaks differ between runs: what libraries keep for later, rows of other lengths than the probe's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationProbe:
    """Runs sweeps of one prompt and many decoding rows over one layer of each kind, on pools that hold just these."""

    model: EngineModel
    attention: AttentionBackend
    device: torch.device
    dtype: torch.dtype
    block_tokens: int

    def peak_bytes(self, num_tokens: int, num_sequences: int) -> int:
        """Returns what to reserve for a micro-batch of `num_tokens` tokens that samples `num_sequences` rows."""
        sweep, num_blocks = self._sweep(num_tokens, min(num_sequences, num_tokens))
        executor = self._executor(num_blocks)
        return int(_SLACK * device_peak_growth_bytes(self.device, lambda: executor.run(sweep, _sample_freely)))

    def _sweep(self, num_tokens: int, num_sequences: int) -> tuple[Sweep, int]:
        chunks: list[Chunk] = []
        num_blocks = 0
        for sequence in range(num_sequences):
            length = 1 if sequence else num_tokens - num_sequences + 1
            blocks = tuple(range(num_blocks, num_blocks - (-length // self.block_tokens)))
            num_blocks += len(blocks)
            tables = tuple((-1, sequence) if group.kind == "state" else blocks for group in self.model.table.groups)
            chunk = Chunk(sequence_id=sequence, start=0, token_ids=(0,) * length, block_tables=tables, samples=True)
            chunks.append(chunk)
        return Sweep(sweep_id=0, micro_batches=(MicroBatch(chunks=tuple(chunks)),), copies=()), num_blocks

    def _executor(self, num_blocks: int) -> Executor:
        table = self.model.table
        first: dict[object, int] = {}
        for index, layer in enumerate(table.layers):
            first.setdefault(layer, index)
        skipped = frozenset(range(len(table.layers))) - frozenset(first.values())
        waits: frozenset[PointKind] = frozenset({"embedding"})
        contexts = ContextBuilder(
            groups=table.groups,
            block_tokens=self.block_tokens,
            pools=build_pools(
                table, [num_blocks] * len(table.groups), self.block_tokens, self.dtype, _zeros_on(self.device)
            ),
            attention=self.attention,
            device=self.device,
            waits=waits,
            skipped_layers=skipped,
        )
        points = [point for point in table.points() if point.kind in waits]
        return Executor(model=self.model, points=points, contexts=contexts)


def _zeros_on(device: torch.device) -> Callable[[tuple[int, ...], torch.dtype], Tensor]:
    return lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=device)


def _sample_freely(logits: Tensor, sequences: Sequence[int]) -> list[SampledToken]:
    """Samples in the way that takes most memory: from the whole vocabulary."""
    sampling = ResolvedSampling(max_tokens=1, temperature=1.0, top_p=0.999)
    return sample(logits, [SamplingRow(sampling=sampling, sample_index=0, step=0, seed=id_) for id_ in sequences])
