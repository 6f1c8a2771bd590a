"""transformers' `generate` on padded static batches of rows sorted by length."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM

from benchmarks.workloads import Row, Workload

Order = Literal["prompt length", "answer length"]
_BATCH_SIZES = (16, 32, 64)


class TransformersGenerate:
    """Rows are sorted, so that a batch pads little, and each batch runs to its longest answer.

    `tune` tries batch sizes and both orders: by prompt length, and by answer length (which a user rarely knows).
    """

    def __init__(self, model: Path, dtype: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._batch_size = _BATCH_SIZES[0]
        self._order: Order = "prompt length"

    @property
    def name(self) -> str:
        return f"transformers generate, batch {self._batch_size}, sorted by {self._order}"

    def tune(self, sample: Workload) -> None:
        times: dict[tuple[Order, int], float] = {}
        for order in ("prompt length", "answer length"):
            for batch_size in _BATCH_SIZES:
                self._order, self._batch_size = order, batch_size
                start = time.perf_counter()
                self.run(sample)
                times[order, batch_size] = time.perf_counter() - start
        self._order, self._batch_size = min(times, key=lambda setting: times[setting])

    def run(self, workload: Workload) -> list[list[int]]:
        indices = sorted(range(len(workload.rows)), key=lambda index: self._key(workload.rows[index]))
        answers: list[list[int]] = [[] for _ in workload.rows]
        for first in range(0, len(indices), self._batch_size):
            batch = indices[first : first + self._batch_size]
            for index, answer in zip(batch, self._run_batch([workload.rows[i] for i in batch]), strict=True):
                answers[index] = answer
        return answers

    def _key(self, row: Row) -> tuple[int, int]:
        lengths = len(row.prompt_ids), row.num_output_tokens
        return lengths if self._order == "prompt length" else (lengths[1], lengths[0])

    def _run_batch(self, rows: list[Row]) -> list[list[int]]:
        width = max(len(row.prompt_ids) for row in rows)
        padding = [width - len(row.prompt_ids) for row in rows]
        ids = torch.tensor([[0] * pad + list(row.prompt_ids) for pad, row in zip(padding, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
        longest = max(row.num_output_tokens for row in rows)
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        answers = output[:, width:].tolist()
        return [answer[: row.num_output_tokens] for answer, row in zip(answers, rows, strict=True)]
