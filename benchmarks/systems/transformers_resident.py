"""transformers' `generate` over static batches, all weights in memory; run by `cpu_resident`."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, StoppingCriteriaList
from transformers.utils import logging

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions
from benchmarks.systems.static_batches import PassTimes, made_contiguous


def measure(request: Figures) -> Figures:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = request["options"]["dtype"]
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, dtype)).eval()
    model.get_output_embeddings().register_forward_pre_hook(made_contiguous)
    loaded = time.perf_counter() - start

    def answer(prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        arrivals = Arrivals(len(prompts))
        rows = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # so that a batch pads little
        for first in range(0, len(rows), batch_size):
            _answer_batch(model, prompts, rows[first : first + batch_size], new_tokens, arrivals)
        return arrivals

    return {
        "settings": f"generate, {model.config._attn_implementation}, dynamic cache",
        "kv_dtype": dtype,
        "load_seconds": loaded,
        "runs": measure_batches(request, answer),
        "versions": versions("torch", "transformers"),
    }


def _answer_batch(
    model: torch.nn.Module, prompts: Prompts, rows: list[int], new_tokens: int, arrivals: Arrivals
) -> None:
    width = max(len(prompts[row]) for row in rows)
    padding = [width - len(prompts[row]) for row in rows]
    ids = torch.tensor([[0] * pad + prompts[row] for pad, row in zip(padding, rows, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    passes = PassTimes()
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([passes]),
        )
    for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
        for token, seconds in zip(tokens, passes.times, strict=True):
            arrivals.add(row, token, seconds)


if __name__ == "__main__":
    serve(measure)
