"""The interface of a system under measurement."""

from __future__ import annotations

from typing import Protocol

from benchmarks.workloads import Workload


class System(Protocol):
    """A loaded model that answers workloads greedily, every answer of exactly the asked length."""

    @property
    def name(self) -> str:
        """With the settings that matter."""

    def tune(self, sample: Workload) -> None:
        """Finds the system's best settings on a sample; not timed."""

    def run(self, workload: Workload) -> list[list[int]]:
        """Returns the answers' tokens in the order of the rows; this call is timed."""
