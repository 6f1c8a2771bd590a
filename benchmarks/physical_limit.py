"""How fast a run could have been: no faster than its bytes come from the disk, nor than its products are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.llama_shape import LlamaShape
from benchmarks.processes import Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The least time for a run's own sweeps, which were chosen by its schedule.

    Attributes:
        read_bytes: of weights that were not in memory, once per sweep.
        operations: of matrix products: of the layers for every token, of the head for every token that was sampled.
            Attention, norms and sampling are left out, which makes the limit rather too fast than too slow.
        sweeps_seconds: the least time sweep by sweep, each the slower of its reading and its computing.
    """

    read_bytes: int
    disk_bytes_per_second: float
    reading_seconds: float
    operations: float
    computing_seconds: float
    sweeps_seconds: float

    @property
    def seconds(self) -> float:
        """Reading and computing overlap at best, even those of different sweeps."""
        return max(self.reading_seconds, self.computing_seconds)

    def figures(self) -> Figures:
        bound = "disk" if self.reading_seconds >= self.computing_seconds else "matrix products"
        return {**asdict(self), "seconds": self.seconds, "bound_by": bound}


def bucket(num_tokens: int) -> int:
    """The number of tokens at which the rate of a micro-batch is measured: the next power of two."""
    return 1 << max(0, num_tokens - 1).bit_length()


def buckets(run: Figures) -> list[int]:
    """All numbers of tokens at which rates are to be measured for a run."""
    return sorted({bucket(tokens) for kind in run["kinds_of_sweeps"] for tokens in kind["micro_batch_tokens"]})


def limit(run: Figures, shape: LlamaShape, *, disk: float, matrix: Mapping[str, float]) -> Limit:
    """Holds a run of Headrace against rates that were measured beside it.

    Args:
        disk: bytes per second.
        matrix: operations per second by number of tokens, at all of the run's `buckets`: that of the next power of two
            is rather higher than a micro-batch's own.
    """
    rates = {int(tokens): rate for tokens, rate in matrix.items()}
    per_token = 2.0 * shape.num_hidden_layers * shape.layer_numbers
    per_sample = 2.0 * shape.head_numbers
    reading = run["bytes_per_sweep"] / disk
    num_sweeps, operations, computing_seconds, sweeps_seconds = 0, 0.0, 0.0, 0.0
    for kind in run["kinds_of_sweeps"]:
        head = kind["sampled_tokens"] * per_sample
        computing = head / max(rates.values())
        computing += sum(tokens * per_token / rates[bucket(tokens)] for tokens in kind["micro_batch_tokens"])
        num_sweeps += kind["times"]
        operations += kind["times"] * (sum(kind["micro_batch_tokens"]) * per_token + head)
        computing_seconds += kind["times"] * computing
        sweeps_seconds += kind["times"] * max(reading, computing)
    return Limit(
        read_bytes=run["bytes_per_sweep"] * num_sweeps,
        disk_bytes_per_second=disk,
        reading_seconds=reading * num_sweeps,
        operations=operations,
        computing_seconds=computing_seconds,
        sweeps_seconds=sweeps_seconds,
    )
