"""Which weights stay on the device, and whose KV does, when its memory holds only some. Free of torch.

Without an accelerator the device is the host's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LEAST_GAIN = 1.1
"""KV goes below for at least this gain: what it is reckoned from is never quite right, and disks wear."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What this machine was measured to do.

    Attributes:
        below: bytes per second that come from the tier below: the disk, or the host of a device.
        matrix: operations per second of matrix products of many tokens in the model's dtype.
    """

    below: float
    matrix: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the model and its typical rows need.

    Attributes:
        part_bytes: of every part that may stay or be streamed, in the order of a sweep.
        kv_layer_bytes: KV of one typical row in every layer that may keep it elsewhere, in the order of a sweep.
        row_bytes: what one typical row takes in memory wherever its KV is.
        max_rows: that may run at a time.
        all_rows: that there are, where that is known: they run in as many turns as it takes.
        operations_per_token: in matrix products.
        tokens_per_row: of a row in a sweep, on average: more than one where prompts come in between.
        slab_bytes: memory that is taken as soon as any KV lies below.
        written_share: of a row's KV that every sweep writes.
        room_below_bytes: for the KV of those layers.
        longest_row: that has to fit, in typical rows.
    """

    part_bytes: Sequence[int]
    kv_layer_bytes: Sequence[int]
    row_bytes: int
    max_rows: int
    operations_per_token: float
    tokens_per_row: float = 2.0
    slab_bytes: int = 0
    written_share: float = 0.0
    room_below_bytes: int = 0
    longest_row: float = 1.0
    all_rows: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What of each kind shall be in memory, from 0 to 1; None leaves it to `place`."""

    weights: float | None = None
    kv: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What lies where.

    Attributes:
        resident: parts, by their place in `part_bytes`, that stay in memory.
        kv_below: layers, by their place in `kv_layer_bytes`, whose KV does not.
    """

    resident: frozenset[int] = frozenset()
    kv_below: frozenset[int] = frozenset()


def place(demand: Demand, rates: Rates, num_bytes: int, shares: Shares | None = None) -> Placement:
    """Divides `num_bytes` between weights that stay and KV so that the most rows advance per second.

    A sweep takes as long as the slower of moving bytes, weights and KV, and computing. Every resident byte spares
    reading; every byte for KV lets more rows share what is read; KV on disk does that too, but is moved in every sweep.
    Where the longest row does not fit, what `shares` asks for is returned all the same, and otherwise nothing stays.
    """
    shares = shares or Shares()
    share_below = None if shares.kv is None else 1 - shares.kv
    num_parts, num_kv_layers = len(demand.part_bytes), len(demand.kv_layer_bytes)
    best = Placement(
        resident=next(_choices(num_parts, shares.weights)), kv_below=next(_choices(num_kv_layers, share_below))
    )
    best_worth = (0.0, 0, 0)
    for kv_below in _choices(num_kv_layers, share_below):
        for resident in _choices(num_parts, shares.weights):
            speed, rows = _speed(demand, rates, num_bytes, resident, kv_below)
            if rows < 1:
                break
            gained = speed / (_LEAST_GAIN if kv_below and shares.kv is None else 1)
            # Of equals the one with more rows, which matrix products like, then the one that leaves the disk to others.
            worth = (float(f"{gained:.4g}"), rows, len(resident))
            if worth > best_worth:
                best, best_worth = Placement(resident=resident, kv_below=kv_below), worth
    return best


def _speed(
    demand: Demand, rates: Rates, num_bytes: int, resident: frozenset[int], kv_below: frozenset[int]
) -> tuple[float, int]:
    """Returns rows advanced per second, and how many run at a time."""
    kept = sum(demand.part_bytes[index] for index in resident)
    below = sum(demand.kv_layer_bytes[index] for index in kv_below)
    row_bytes = demand.row_bytes + sum(demand.kv_layer_bytes) - below
    room = num_bytes - kept - (demand.slab_bytes if kv_below else 0)
    rows = min(demand.max_rows, room // max(1, row_bytes))
    if below:
        rows = min(rows, demand.room_below_bytes // below)
    if demand.longest_row * row_bytes > room or demand.longest_row * below > demand.room_below_bytes:
        return 0.0, 0
    if rows and demand.all_rows:
        turns = -(-demand.all_rows // rows)
        rows = -(-demand.all_rows // turns)
    moved = sum(demand.part_bytes) - kept + rows * below * (1 + demand.written_share)
    computing = rows * demand.tokens_per_row * demand.operations_per_token / rates.matrix
    return rows / max(moved / rates.below, computing, 1e-9), rows


def _choices(num_parts: int, share: float | None) -> Iterator[frozenset[int]]:
    """Parts, spread evenly: as many as the share says, or every number of them, fewest first."""
    if share is None:
        yield from (spread(num_parts, count) for count in range(num_parts + 1))
    else:
        yield spread(num_parts, round(share * num_parts))


def spread(num_parts: int, count: int) -> frozenset[int]:
    """Returns `count` of `num_parts` places, evenly apart, so that reading goes on while resident parts compute."""
    return frozenset((2 * index + 1) * num_parts // (2 * count) for index in range(count))
