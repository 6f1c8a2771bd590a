"""Latency against throughput over numbers of rows at a time, and the files that it is written to."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.bench.picture import draw_curve, require_matplotlib
from headrace.errors import OptionError

if TYPE_CHECKING:
    from headrace.bench.report import Point, Report


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One number of rows at a time, in medians and means; seconds and shares, as the names say.

    Attributes:
        tpot_seconds, tpot_p99_seconds: None where answers have one token.
    """

    batch_size: int
    generated_tokens_per_second: float
    generated_tokens_per_second_std: float
    ttft_seconds: float
    tpot_seconds: float | None
    tpot_p99_seconds: float | None
    end_to_end_seconds: float
    mbu: float | None
    mfu: float

    @staticmethod
    def of(point: Point) -> CurvePoint:
        """Returns the mean rate of a point's runs, and the medians of its rows' times."""
        measures = point.measures
        return CurvePoint(
            batch_size=point.workload.num_rows,
            generated_tokens_per_second=measures.generated_tokens_per_second.mean,
            generated_tokens_per_second_std=measures.generated_tokens_per_second.std,
            ttft_seconds=measures.ttft_seconds.p50,
            tpot_seconds=None if measures.tpot_seconds is None else measures.tpot_seconds.p50,
            tpot_p99_seconds=None if measures.tpot_seconds is None else measures.tpot_seconds.p99,
            end_to_end_seconds=measures.end_to_end_seconds.p50,
            mbu=point.utilization.mbu,
            mfu=point.utilization.mfu,
        )


class CurveFile:
    """The file that a curve goes to, in the form that its name ends with.

    Raises:
        OptionError: it cannot be written, or nothing is there that could draw it; said before anything is measured.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(name)
        suffix = self._path.suffix.lower()
        if suffix not in _WRITERS:
            raise OptionError(f"--output is {name!r}; expected a name that ends with {', '.join(_WRITERS)}")
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise OptionError(f"cannot write the curve {name}: expected a file in a folder that exists")
        self._write = _WRITERS[suffix]
        if self._write is _picture:
            require_matplotlib()

    def write(self, report: Report) -> None:
        """Replaces the file.

        Raises:
            OptionError: the system refuses.
        """
        content = self._write(report)
        try:
            self._path.write_bytes(content)
        except OSError as error:
            raise OptionError(f"cannot write the curve {self._path}: {error.strerror}") from error


def _json(report: Report) -> bytes:
    return (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode()


def _csv(report: Report) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(CurvePoint)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(CurvePoint.of(point)) for point in report.points)
    return text.getvalue().encode()


def _picture(report: Report) -> bytes:
    points = [CurvePoint.of(point) for point in report.points]
    workload, subject = report.points[0].workload, report.subject
    where = subject.machine.cpu if subject.device == "cpu" else subject.device
    return draw_curve(
        rates=[point.generated_tokens_per_second for point in points],
        latencies=[point.end_to_end_seconds for point in points],
        names=[str(point.batch_size) for point in points],
        title=f"{subject.model}, {subject.dtype} on {where}\n"
        f"{workload.prompt_tokens:,} + {workload.max_tokens:,} tokens a row; numbers are rows at a time",
    )


_WRITERS: dict[str, Callable[[Report], bytes]] = {".png": _picture, ".csv": _csv, ".json": _json}
