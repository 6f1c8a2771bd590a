"""Runs rows through the engine's own rooms in sweeps of any shape, and the same rows through transformers.

The loop is the engine's: the scheduler says who runs, the executor runs it, the scheduler takes the tokens. Only here
the tokens may come from somewhere else than the logits, and the logits are there to be looked at.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice, takewhile
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import AttentionBackend
from headrace.compression.kv_codec import KVCodec
from headrace.engine.engine import Engine, salt_and_restart
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor, Sampled, Sampler, Schedule, token_ids
from headrace.executor.pools import build_pools
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager
from headrace.models.coroutine import acting_for
from headrace.models.layer_table import LayerTable, LengthRule
from headrace.models.micro_batch import LastTokens, MicroBatchContext
from headrace.models.observation import observe
from headrace.models.takeover import EngineModel
from headrace.models.tokenizer import WithoutTokenizer
from headrace.sampling.guidance import Guidance
from headrace.sampling.parameters import GenerationDefaults
from headrace.sampling.tokens import SampledToken
from headrace.schedule.steps import Point, PointKind, Resume, Step, sweep_steps
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.sequence import Sequence as ScheduledSequence
from headrace.scheduler.sweep import Chunk, Sweep
from headrace.storage.budget import Budget
from headrace.storage.governor import Governor
from headrace.trace import NoTrace
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import make_tiny_model
from tests.tiny_types import tiny_values

ALL_KINDS: frozenset[PointKind] = frozenset({"embedding", "layer", "attention", "experts", "head"})
MANY_BLOCKS = 400


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt, and how many tokens follow it; `num_samples` sequences run it, from sweep number `arrival` on."""

    prompt: tuple[int, ...]
    num_new: int
    num_samples: int = 1
    arrival: int = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How rows are cut into sweeps, and what runs them. `scarce`: too few blocks for all rows at a time."""

    attention: Callable[[], AttentionBackend] = GroupedAttention
    schedule: Schedule = sweep_steps
    num_micro_batches: int = 1
    sweep_tokens: int = 1024
    max_num_seqs: int = 64
    block_tokens: int = 32
    shares_prefixes: bool = True
    scarce: bool = False
    guessing_tokens: int = 0
    waits: frozenset[PointKind] = ALL_KINDS
    codec: KVCodec | None = None
    products: Callable[[], AbstractContextManager[object]] = nullcontext


class Runner(Protocol):
    """What runs a sweep: an `Executor`, or one that does it in an unusual way."""

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled: ...


@dataclass(kw_only=True)
class Rig:
    """A model in memory with everything that runs it."""

    scheduler: Scheduler
    cache: KVCacheManager
    executor: Runner
    length_rule: LengthRule | None
    _ids: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def run(
        self, rows: Sequence[Row], sampler: Sampler | None = None, watch: Callable[[Sweep], None] = lambda _: None
    ) -> list[list[int]]:
        """Returns the new tokens of every sequence, in the order of rows and samples.

        Args:
            sampler: where the tokens come from; the most likely ones if it is not given.
            watch: called after each sweep.
        """
        arrivals = [
            (
                row.arrival,
                ScheduledSequence(
                    sequence_id=next(self._ids),
                    request_id=request_id,
                    sample_index=sample,
                    prompt_ids=row.prompt,
                    max_tokens=row.num_new,
                    salt=salt,
                    restart=restart,
                ),
            )
            for request_id, row in enumerate(rows)
            for salt, restart in [salt_and_restart(self.length_rule, len(row.prompt))]
            for sample in range(row.num_samples)
        ]
        num_sweeps = 0
        waiting = sorted(arrivals, key=lambda arrival: arrival[0])
        while True:
            while waiting and waiting[0][0] <= num_sweeps:
                self.scheduler.add(waiting.pop(0)[1])
            sweep = self.scheduler.next_sweep()
            if sweep is None and not waiting:
                break
            if sweep is not None:
                sampled = self.executor.run(sweep, sampler or greedy)
                watch(sweep)
                self.scheduler.commit(sweep, token_ids(sampled))
            num_sweeps += 1
        assert not self.scheduler.take_rejected(), "the shape has too few blocks for one row alone"
        self.cache.check_integrity()
        assert all(pool.num_available == pool.num_blocks for pool in self.cache.pools), "blocks were lost"
        return [sequence.output_ids for _, sequence in arrivals]


def make_rig(
    model: EngineModel, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Rig:
    """Builds the rooms around a model that was taken over; several rigs may use one model, one after another."""
    table, device = model.table, device or torch.device("cpu")
    num_blocks = [_num_blocks(group, shape) for group in table.groups]
    kv_cache = KVCacheManager(
        table.groups,
        num_blocks=num_blocks,
        block_tokens=shape.block_tokens,
        snapshot_tokens=2 * shape.block_tokens,
        enable_prefix_caching=shape.shares_prefixes,
    )
    limits = SweepLimits(
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=shape.sweep_tokens,
        max_micro_batch_tokens=shape.sweep_tokens,
        num_micro_batches=shape.num_micro_batches,
        guessing_tokens=shape.guessing_tokens,
    )
    pools = build_pools(table, num_blocks, shape.block_tokens, dtype, device, codec=shape.codec)
    contexts = ContextBuilder(
        groups=table.groups,
        block_tokens=shape.block_tokens,
        pools=pools,
        attention=shape.attention(),
        device=device,
    )
    points = [point for point in table.points() if point.kind in shape.waits]
    executor = Executor(
        model=model, points=points, contexts=contexts, schedule=shape.schedule, products=shape.products()
    )
    return Rig(scheduler=Scheduler(kv_cache, limits), cache=kv_cache, executor=executor, length_rule=table.length_rule)


def executor_of(rig: Rig) -> Executor:
    """Returns the executor of a rig that has just been made."""
    assert isinstance(rig.executor, Executor)
    return rig.executor


def engine_of(rig: Rig, model: EngineModel) -> Engine:
    """Builds an engine from the rooms of a rig."""
    return Engine(
        scheduler=rig.scheduler,
        executor=cast("Executor", rig.executor),
        governor=Governor(budget=Budget(tier="host", limit_bytes=1 << 50, option="--memory")),
        tokenizer=WithoutTokenizer(),
        guidance=Guidance(WithoutTokenizer(), num_tokens=model.table.vocab_size, end_token_ids=(), trace=NoTrace()),
        defaults=GenerationDefaults(),
        max_model_len=128,
        vocab_size=model.table.vocab_size,
        seed=0,
    )


def _num_blocks(group: KVGroup, shape: Shape) -> int:
    if not shape.scarce:
        return MANY_BLOCKS
    if group.kind == "state":
        return 7
    longest = max(len(row.prompt) + row.num_new for row in crowded_rows())
    return min(-(-longest // shape.block_tokens), 3 * group.window_blocks(shape.block_tokens)) + 1


def greedy(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
    """Takes the most likely token after each row, and after those guesses that were right."""
    likeliest = iter(logits.argmax(-1).tolist())
    sampled = {}
    for chunk in chunks:
        token_ids = list(islice(likeliest, chunk.num_logits))
        num_right = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chunk.guess, token_ids, strict=False))
        )
        sampled[chunk.sequence_id] = [SampledToken(token_id=token_id) for token_id in token_ids[: num_right + 1]]
    return sampled


@cache
def tiny_engine_model(name: str, dtype: torch.dtype = torch.float32) -> EngineModel:
    """Returns the tiny model `name`, taken over; made once per test session."""
    model = make_tiny_model(name, dtype=dtype)
    return EngineModel(model, table_of(model))


@cache
def tiny_reference(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Returns the same model as transformers made it."""
    return make_tiny_model(name, dtype=dtype)


def table_of(model: PreTrainedModel) -> LayerTable:
    """Returns the layer table of a transformers model."""
    return observe(model.config)


@cache
def generated(name: str, prompt: tuple[int, ...], num_new: int) -> list[int]:
    """Returns what transformers' `generate` gives for one row alone, greedily in fp32."""
    remembers = "dynamic" in str(tiny_values(name).get("rope_parameters"))  # frequencies of the longest row so far
    return generate_alone(make_tiny_model(name) if remembers else tiny_reference(name), prompt, num_new)


def generate_alone(model: PreTrainedModel, prompt: Sequence[int], num_new: int) -> list[int]:
    """Returns the new tokens of one row, greedily, by transformers."""
    ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


LENGTHS = (1, 3, 7, 14, 33, 64, 100)
"""Of prompts: below and above a window of 5 and blocks of 4 and 32, at a block's end, and inside of one."""
NUM_NEW = 8


def make_prompt(length: int, seed: int = 7) -> tuple[int, ...]:
    """Returns random tokens without the special ones."""
    draw = random.Random(f"{seed}:{length}")
    return tuple(draw.randrange(3, VOCAB_SIZE) for _ in range(length))


def distinct_rows(*, every: int = 0) -> list[Row]:
    """Rows that share nothing, long ones between short ones; one arrives in every `every`-th sweep."""
    mixed = sorted(LENGTHS, key=lambda length: length * 37 % 101)
    return [Row(prompt=make_prompt(length), num_new=NUM_NEW, arrival=every * i) for i, length in enumerate(mixed)]


def sharing_rows(*, every: int = 0) -> list[Row]:
    """Rows that begin alike: up to a block's end, up to its middle, in all of their tokens; some with samples."""
    system = make_prompt(64)
    prompts = [
        (system + make_prompt(3), 1),
        (system[:45] + make_prompt(9), 2),
        (system, 1),
        (system + make_prompt(3), 3),
        (make_prompt(14), 1),
        (system[:32] + make_prompt(33)[:20], 1),
        (system + make_prompt(33), 1),
    ]
    return [
        Row(prompt=prompt, num_new=NUM_NEW, num_samples=num_samples, arrival=every * i)
        for i, (prompt, num_samples) in enumerate(prompts)
    ]


def crowded_rows(*, every: int = 0) -> list[Row]:
    """Rows for a scarce cache: short ones of one length that grow to a multiple of it, and two that fill it alone."""
    lengths = (8, 8, 33, 8, 24, 8)
    return [
        Row(prompt=make_prompt(length, seed), num_new=16 if length == 8 else 3, arrival=every * seed)
        for seed, length in enumerate(lengths)
    ]


def scattered_steps(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
    """A schedule in a wild order that keeps what sweeps promise: at each point earlier micro-batches come first."""
    draw = random.Random(len(points))
    reached = [0] * num_micro_batches
    while True:
        ready = [i for i, n in enumerate(reached) if n < len(points) and (i == 0 or reached[i - 1] > n)]
        if not ready:
            return
        micro_batch = draw.choice(ready)
        yield Resume(micro_batch, points[reached[micro_batch]])
        reached[micro_batch] += 1


@dataclass(kw_only=True)
class AllLogits:
    """In an executor's place of its model: the same forward, but it keeps the logits of every token of a micro-batch.

    Attributes:
        seen: (T, vocabulary) in fp32 for each micro-batch since it was last emptied, in order.
    """

    model: EngineModel
    seen: list[Tensor] = field(default_factory=list)

    def forward(self, context: MicroBatchContext) -> Tensor:
        everything = torch.arange(context.token_ids.shape[1], device=context.token_ids.device)
        wanting_all = replace(context, wanted=LastTokens(counts=np.array([len(everything)]), tokens=everything))
        with acting_for(wanting_all):
            logits = self.model.forward(wanting_all)
        self.seen.append(logits.float())
        return logits[context.wanted.tokens]


def forced_logits(
    model: EngineModel,
    shape: Shape,
    texts: Sequence[Sequence[int]],
    num_prompt: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Returns the logits (tokens, vocabulary) after every token of every text.

    The first `num_prompt` tokens of a text are its prompt; the others are decoded one by one, whatever the logits say.
    """
    rig, recorder = make_rig(model, shape, dtype), AllLogits(model=model)
    rig.executor = replace(executor_of(rig), model=cast("EngineModel", recorder))
    rows = [
        Row(prompt=tuple(text[:length]), num_new=len(text) - length + 1)
        for text, length in zip(texts, num_prompt, strict=True)
    ]
    logits = [torch.full((len(text), model.table.vocab_size), float("nan")) for text in texts]

    def watch(sweep: Sweep) -> None:
        for micro_batch, packed in zip(sweep.micro_batches, recorder.seen, strict=True):
            parts = packed.split([chunk.num_tokens for chunk in micro_batch.chunks])
            for chunk, part in zip(micro_batch.chunks, parts, strict=True):
                logits[chunk.sequence_id][chunk.start : chunk.stop] = part
        recorder.seen.clear()

    num_known = list(num_prompt)

    def next_of_text(_: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        tokens = {}
        for sequence in (chunk.sequence_id for chunk in chunks):
            text, known = texts[sequence], num_known[sequence]
            tokens[sequence] = (SampledToken(token_id=text[known] if known < len(text) else 0),)
            num_known[sequence] += 1
        return tokens

    rig.run(rows, next_of_text, watch)
    assert not any(part.isnan().any() for part in logits), "not every token was computed"
    return logits
