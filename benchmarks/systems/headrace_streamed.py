"""Headrace on a model larger than its memory, and what its sweeps did; run by `beyond_memory` in a process of its own.

Nothing is timed but the rows: from the first request to the last answer, the model being loaded.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

from benchmarks.processes import Figures, StorageTraffic, serve
from headrace import LLM, SamplingParams
from headrace.engine import streaming
from headrace.engine.engine import Engine
from headrace.errors import BudgetError
from headrace.executor.executor import Executor, Sampled, Sampler
from headrace.executor.weight_stream import WeightStream
from headrace.scheduler.sweep import Sweep
from headrace.storage.disk_reader import DiskReader
from headrace.storage.process_memory import peak_resident_bytes, resident_bytes
from headrace.units import MIB

_LEAST_STEP = 16 * MIB
_LEAST_SPARE = 24 * MIB
"""Beyond the least that started: another process takes a little more or less."""


class NotedReader(DiskReader):
    """A reader that can be found again: whoever makes the engine keeps it to itself."""

    made: ClassVar[list[DiskReader]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made.append(self)

    @classmethod
    def totals(cls) -> tuple[int, float]:
        """Returns bytes and seconds of all readers so far."""
        return sum(reader.num_bytes for reader in cls.made), sum(reader.busy_seconds for reader in cls.made)


class SweepLog:
    """An executor that counts what it runs."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.most_rows = 0
        self.kinds: Counter[tuple[tuple[int, ...], int]] = Counter()

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled:
        sampled = self._executor.run(sweep, sampler)
        rows = {chunk.sequence_id for micro_batch in sweep.micro_batches for chunk in micro_batch.chunks}
        self.most_rows = max(self.most_rows, len(rows))
        self.kinds[tuple(micro_batch.num_tokens for micro_batch in sweep.micro_batches), len(sampled)] += 1
        return sampled

    def figures(self) -> Figures:
        return {
            "sweeps": self.kinds.total(),
            "most_rows_in_a_sweep": self.most_rows,
            "sampled_tokens": sum(sampled * times for (_, sampled), times in self.kinds.items()),
            "kinds_of_sweeps": [
                {"micro_batch_tokens": list(tokens), "sampled_tokens": sampled, "times": times}
                for (tokens, sampled), times in self.kinds.items()
            ],
        }


def measure(request: Figures) -> Figures:
    """Answers `rows` random prompts, or only says what would run at a time where there are none."""
    streaming.DiskReader = NotedReader  # type: ignore[attr-defined,misc]
    start = time.perf_counter()
    try:
        llm = _open(request, request["memory"]) if request["memory"] else _open_with_least(request)
    except BudgetError as error:
        return {"refused": str(error)}
    with llm:
        engine = llm._require_engine()  # what sweeps did is nothing that users of LLM are told
        row_tokens = request["prompt_tokens"] + request["new_tokens"]
        figures: Figures = {
            "description": llm.description,
            "memory_bytes": request["memory"] or engine.governor.budget.limit_bytes + _LEAST_SPARE,
            "rows_at_a_time": _rows_at_a_time(engine, row_tokens),
            "load_seconds": time.perf_counter() - start,
        }
        if request["rows"]:
            figures |= _answer(llm, engine, request)
    return {**figures, "peak_bytes": peak_resident_bytes()}


def _open(request: Figures, memory: int) -> LLM:
    return LLM(
        request["model"],
        dtype=request["dtype"],
        memory=memory,
        typical_row_tokens=request["prompt_tokens"] + request["new_tokens"],
        expected_rows=request["rows"] or None,
        **request["options"],
    )


def _open_with_least(request: Figures) -> LLM:
    """Finds about the least memory with which the model starts."""
    for memory in itertools.count(resident_bytes() + _LEAST_STEP, _LEAST_STEP):
        with suppress(BudgetError):
            return _open(request, memory)
    raise AssertionError("some memory is enough")


def _answer(llm: LLM, engine: Engine, request: Figures) -> Figures:
    draw = random.Random(0)
    prompts = [
        [draw.randrange(engine.vocab_size) for _ in range(request["prompt_tokens"])] for _ in range(request["rows"])
    ]
    weights = engine.executor.weights
    stream = weights if isinstance(weights, WeightStream) else None
    waited_before = stream.waited_seconds if stream else 0.0
    log = SweepLog(engine.executor)
    engine.executor = log  # type: ignore[assignment]
    bytes_before, busy_before = NotedReader.totals()
    traffic = StorageTraffic.now()
    start = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True)
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    num_generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    bytes_after, busy_after = NotedReader.totals()
    return {
        "seconds": seconds,
        "generated_tokens": num_generated,
        "generated_tokens_per_second": num_generated / seconds,
        **log.figures(),
        "waited_for_weights_seconds": stream.waited_seconds - waited_before if stream else 0.0,
        "bytes_per_sweep": stream.bytes_per_sweep if stream else 0,
        "weights_read_bytes": bytes_after - bytes_before,
        "reading_seconds": busy_after - busy_before,
        **traffic.since(),
        "preemptions": engine.scheduler.num_preemptions,
    }


def _rows_at_a_time(engine: Engine, row_tokens: int) -> int:
    """As many rows of `row_tokens` as the cache holds to their ends, and a sweep takes."""
    cache = engine.scheduler._cache
    held = min(pool.num_blocks for pool in cache.pools) // -(-row_tokens // cache.block_tokens)
    return max(1, min(engine.scheduler.limits.max_num_seqs, held))


if __name__ == "__main__":
    serve(measure)
