"""One model, and how each system is run on it: in a process of its own, over the form of the model that it reads."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peer_environments import PeerMissingError, peer_python
from benchmarks.processes import Figures, measure_in_process
from benchmarks.resident_systems import SYSTEMS, Form, Variant
from benchmarks.systems.resident import WARM_UP_TOKENS
from benchmarks.workloads import Workload

Batches = Mapping[int, Workload]
"""By how many rows are answered at a time."""

_WARM_UP_PROMPT = 64


class FormMissingError(Exception):
    """A model could not be brought into the form that a system reads; says why."""


class ResidentBench:
    """Runs systems on a model."""

    def __init__(
        self, *, model: Path, vocab_size: int, work: Path, peers: Path, threads: int, limit_seconds: float
    ) -> None:
        """Args:
        work: folder for further forms of the model.
        peers: folder for the environments of peers.
        limit_seconds: of one process.
        """
        self._model, self._vocab_size, self._work, self._peers = model, vocab_size, work, peers
        self._threads, self._limit_seconds = threads, limit_seconds
        self._missing: dict[str, PeerMissingError | FormMissingError] = {}

    def run(self, name: str, variant: Variant, batches: Batches, least_gain: float = 0.0) -> Figures:
        """Lets a system answer the batches, the smallest first, and returns what its process measured.

        Args:
            least_gain: larger batches are left out once one has not so many times the rate of the best before it.
        """
        peer, form = SYSTEMS[name].peer, variant.form
        try:
            python = sys.executable if peer is None else self._once(peer, lambda: peer_python(peer, self._peers))
            model = self._model if form is None else self._once(form.name, lambda: self._made(form, python))
        except (PeerMissingError, FormMissingError) as error:
            return {"failed": str(error)}
        rows = [row for workload in batches.values() for row in workload.rows]
        (new_tokens,) = {row.num_output_tokens for row in rows}
        row_tokens = max(len(row.prompt_ids) for row in rows) + new_tokens
        request = {
            "model": str(model),
            "options": variant.options,
            "threads": self._threads,
            "rows": max(len(workload.rows) for workload in batches.values()),
            "row_tokens": max(row_tokens, _WARM_UP_PROMPT + WARM_UP_TOKENS),
            "new_tokens": new_tokens,
            "warm_up": [[random.Random(0).randrange(self._vocab_size) for _ in range(_WARM_UP_PROMPT)]],
            "batches": [
                {"batch_size": size, "prompts": [list(row.prompt_ids) for row in workload.rows]}
                for size, workload in sorted(batches.items())
            ],
            "least_gain": least_gain,
        }
        return measure_in_process(
            SYSTEMS[name].module, request, python=python, variables=self._variables(), limit_seconds=self._limit_seconds
        )

    def _once(self, name: str, make: Callable[[], str]) -> str:
        """Does not try again what could not be made."""
        if name in self._missing:
            raise self._missing[name]
        try:
            return make()
        except (PeerMissingError, FormMissingError) as error:
            self._missing[name] = error
            raise

    def _made(self, form: Form, python: str) -> str:
        """Returns where the model in another form is, which is made if it is not there."""
        target = self._work / f"{self._model.name}-{form.name}"
        made = Path(f"{target}.made.json")
        if not made.exists():
            _remove(target)
            request = {"model": str(self._model), "target": str(target), **form.options}
            interpreter = sys.executable if form.by_headrace else python
            figures = measure_in_process(form.module, request, python=interpreter, variables=self._variables())
            if "failed" in figures:
                raise FormMissingError(f"{form.name} cannot be made: {figures['failed']}")
            made.write_text(json.dumps(figures))
        return str(target)

    def _variables(self) -> dict[str, str]:
        """The same for all: so many threads, no hub, no statistics sent."""
        return {"OMP_NUM_THREADS": str(self._threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def _remove(target: Path) -> None:
    """Removes what was left half way."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
