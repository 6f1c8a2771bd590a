"""How much of what the machine can do a run has used: MBU of memory's bandwidth, MFU of the processor's operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.bench.measures import TimedRun
from headrace.engine.model_work import ModelWork


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the machine was measured to do.

    Attributes:
        memory_bytes_per_second: read by one operation.
        matrix_operations_per_second: of products of 512 tokens in the model's dtype, or with its packed weights.
        measured: when and by what.
    """

    memory_bytes_per_second: float
    matrix_operations_per_second: float
    measured: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Utilization:
    """Shares of the machine's limits, 1 being all.

    Attributes:
        mbu: bytes that decoding must read / time of the sweeps that decoded / bandwidth; None where none did.
        mfu: operations of all tokens / time of all runs / rate.
    """

    mbu: float | None
    mfu: float

    @staticmethod
    def of(runs: Sequence[TimedRun], work: ModelWork, limits: Limits) -> Utilization:
        """Returns what at least one run has used."""
        seconds = num_bytes = 0.0
        for run in runs:
            for sweep_seconds, contexts in _decoding_sweeps(run):
                seconds += sweep_seconds
                num_bytes += work.sweep_bytes(len(contexts)) + sum(work.kv_bytes(context) for context in contexts)
        operations = sum(
            # The last token that a row generates is not computed any more.
            work.operations(row.num_prompt_tokens + row.num_tokens - 1, row.num_tokens)
            for run in runs
            for row in run.rows
        )
        return Utilization(
            mbu=num_bytes / seconds / limits.memory_bytes_per_second if seconds else None,
            mfu=operations / sum(run.seconds for run in runs) / limits.matrix_operations_per_second,
        )


def _decoding_sweeps(run: TimedRun) -> list[tuple[float, list[int]]]:
    """Returns the time of each sweep that gave a row a further token, and the tokens that those rows then had.

    Tokens that came at one time are of one sweep. It began when the one before ended: while a row decodes, every sweep
    gives it a token. Of several tokens of a row in one sweep, which guessing brings, the first stands for all.
    """
    contexts: defaultdict[float, list[int]] = defaultdict(list)
    ends: set[float] = set()
    for row in run.rows:
        ends.update(row.token_seconds)
        for index, (before, now) in enumerate(pairwise(row.token_seconds), 1):
            if now > before:
                contexts[now].append(row.num_prompt_tokens + index)
    return [(end - start, contexts[end]) for start, end in pairwise(sorted(ends)) if end in contexts]
