"""Headrace, as a user's Python program runs it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workloads import Workload
from headrace import LLM, SamplingParams


class HeadraceJob:
    """`LLM.generate` with default settings; no prefix caching, or a repeated run would find the first one's KV."""

    name = "headrace"

    def __init__(self, model: Path, dtype: str) -> None:
        self._llm = LLM(model, dtype=dtype, enable_prefix_caching=False)

    def tune(self, sample: Workload) -> None:
        """Nothing to find: the defaults are measured. Runs the sample once, so that both systems are warm."""
        self.run(sample)

    def run(self, workload: Workload) -> list[list[int]]:
        params = [
            SamplingParams(temperature=0, max_tokens=row.num_output_tokens, ignore_eos=True) for row in workload.rows
        ]
        outputs = self._llm.generate([list(row.prompt_ids) for row in workload.rows], params)
        return [list(output.outputs[0].token_ids) for output in outputs]
