"""How fast a run could have been: no faster than its bytes come from the disk, nor than its products are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.dummy_model import LlamaShape
from benchmarks.processes import Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The least time for a run's own sweeps, which were chosen by its schedule.

    Attributes:
        read_bytes: of weights that were not in memory, once per sweep.
        operations: of matrix products: of the layers for every token, of the head for every token that was sampled.
            Attention, norms and sampling are left out, which makes the limit rather too fast than too slow.
    """

    read_bytes: int
    disk_bytes_per_second: float
    reading_seconds: float
    operations: float
    computing_seconds: float

    @property
    def seconds(self) -> float:
        """Reading and computing overlap at best."""
        return max(self.reading_seconds, self.computing_seconds)

    def figures(self) -> Figures:
        bound = "disk" if self.reading_seconds >= self.computing_seconds else "matrix products"
        return {**asdict(self), "seconds": self.seconds, "bound_by": bound}


def bucket(num_tokens: int) -> int:
    """The number of tokens at which the rate of a micro-batch is measured: the next power of two."""
    return 1 << max(0, num_tokens - 1).bit_length()


def limit(run: Figures, shape: LlamaShape, rates: Sequence[Figures]) -> Limit:
    """Holds a run of Headrace against the rates that were measured around it: their means.

    Matrix products of a micro-batch run at the rate of the next power of two of tokens, which is rather higher.
    """
    disk = _mean(rate["disk"] for rate in rates)
    by_bucket = {int(tokens): _mean(rate["matrix"][tokens] for rate in rates) for tokens in rates[0]["matrix"]}
    num_tokens = _tokens(run)
    layers = 2.0 * shape.num_hidden_layers * shape.layer_numbers
    head = 2.0 * shape.head_numbers * run["sampled_tokens"]
    computing = sum(
        tokens * count * layers / by_bucket[bucket(tokens)] for tokens, count in _micro_batches(run).items()
    ) + head / max(by_bucket.values())
    read_bytes = run["bytes_per_sweep"] * run["sweeps"]
    return Limit(
        read_bytes=read_bytes,
        disk_bytes_per_second=disk,
        reading_seconds=read_bytes / disk,
        operations=layers * num_tokens + head,
        computing_seconds=computing,
    )


def buckets(most_tokens: int) -> list[int]:
    """All numbers of tokens at which rates are to be measured, for micro-batches of up to `most_tokens`."""
    return [1 << power for power in range(bucket(most_tokens).bit_length())]


def _micro_batches(run: Figures) -> Mapping[int, int]:
    return {int(tokens): count for tokens, count in run["micro_batches_of_tokens"].items()}


def _tokens(run: Figures) -> int:
    return sum(tokens * count for tokens, count in _micro_batches(run).items())


def _mean(values: Iterable[float]) -> float:
    all_values = list(values)
    return sum(all_values) / len(all_values)
