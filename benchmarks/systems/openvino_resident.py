"""openvino-genai's continuous batching; run by `cpu_resident` in openvino-genai's own environment."""

from __future__ import annotations

import itertools
import time

import numpy as np
import openvino
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig, Tokenizer

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions

_BLOCK_TOKENS = 32
_SWEEP_TOKENS = 1024
"""Of prompts, in one step."""


def measure(request: Figures) -> Figures:
    kv, threads = request["options"]["kv"], request["threads"]
    schedule = SchedulerConfig()
    schedule.max_num_seqs = request["rows"]
    schedule.max_num_batched_tokens = _SWEEP_TOKENS
    schedule.num_kv_blocks = request["rows"] * (-(-request["row_tokens"] // _BLOCK_TOKENS) + 1)
    properties = {"INFERENCE_NUM_THREADS": threads, "KV_CACHE_PRECISION": kv}
    start = time.perf_counter()
    pipeline = ContinuousBatchingPipeline(request["model"], Tokenizer(request["model"]), schedule, "CPU", **properties)
    loaded = time.perf_counter() - start
    numbers = itertools.count()

    def answer(prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        arrivals = Arrivals(len(prompts))
        config = GenerationConfig(
            max_new_tokens=new_tokens, ignore_eos=True, do_sample=False, eos_token_id=0, stop_token_ids={0}
        )  # of its own it has a token -1, which it refuses
        handles = [
            pipeline.add_request(next(numbers), openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for prompt in prompts
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for row, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        for token in output.generated_ids:
                            arrivals.add(row, token)
        return arrivals

    return {
        "settings": f"continuous batching, {_SWEEP_TOKENS} tokens of prompts a step, KV in {kv}",
        "kv_dtype": kv,
        "load_seconds": loaded,
        "runs": measure_batches(request, answer),
        "versions": versions("openvino", "openvino-genai", "optimum-intel", "nncf"),
    }


if __name__ == "__main__":
    serve(measure)
