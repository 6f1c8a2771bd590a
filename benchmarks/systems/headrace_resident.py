"""Headrace with all weights in memory, as a user's Python program runs it; run by `cpu_resident`."""

from __future__ import annotations

import time

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions
from headrace import LLM, SamplingParams
from headrace.kernels.library import instruction_set


def measure(request: Figures) -> Figures:
    start = time.perf_counter()
    options = request["options"]
    with LLM(request["model"], **options) as llm:
        loaded = time.perf_counter() - start

        def answer(prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
            params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
            arrivals = Arrivals(len(prompts))
            for row, output in enumerate(llm.generate(prompts, params)):
                (first,) = output.outputs
                for token, seconds in zip(first.token_ids, first.token_seconds, strict=True):
                    arrivals.add(row, token, seconds)
            return arrivals

        return {
            "settings": llm.description,
            "instruction_set": instruction_set(),
            "kv_dtype": options.get("kv_cache_dtype", options["dtype"]),
            "load_seconds": loaded,
            "runs": measure_batches(request, answer),
            "versions": versions("headrace", "torch", "transformers"),
        }


if __name__ == "__main__":
    serve(measure)
