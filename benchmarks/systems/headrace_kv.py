"""Headrace over rows whose keys and values are kept in one way or another; run by `kv_codecs` in a process of its own.

The prompts are computed once. Then the same rows are answered several times: their keys and values are found again, so
that only decoding is timed.
"""

from __future__ import annotations

import random
import time

from benchmarks.processes import Figures, serve
from headrace import LLM, SamplingParams
from headrace.storage.process_memory import peak_resident_bytes, resident_bytes


def measure(request: Figures) -> Figures:
    """Answers `rows` random prompts `passes` times."""
    row_tokens = request["prompt_tokens"] + request["new_tokens"]
    with LLM(
        request["model"],
        dtype=request["dtype"],
        quantization=request["quantization"],
        kv_cache_dtype=request["kv_cache_dtype"],
        max_num_seqs=request["rows"],
        max_model_len=row_tokens,
        expected_rows=request["rows"],
        typical_row_tokens=row_tokens,
    ) as llm:
        engine = llm._require_engine()  # users of LLM are not told what its cache has
        draw = random.Random(0)
        prompts = [
            [draw.randrange(engine.vocab_size) for _ in range(request["prompt_tokens"])] for _ in range(request["rows"])
        ]
        pages = engine.executor.contexts._pools.tensors(0)
        before = resident_bytes()
        prefill_seconds = _answer(llm, prompts, 1)
        grown = resident_bytes() - before
        decode_seconds = [_answer(llm, prompts, request["new_tokens"]) for _ in range(request["passes"])]
        return {
            "description": llm.description,
            "prompt_tokens_per_second": request["rows"] * request["prompt_tokens"] / prefill_seconds,
            "generated_tokens_per_second": [
                request["rows"] * request["new_tokens"] / seconds for seconds in decode_seconds
            ],
            "kv_bytes_per_token": sum(page[0].nbytes for page in pages) / engine.scheduler._cache.block_tokens,
            "growth_bytes": grown,
            "peak_bytes": peak_resident_bytes(),
            "preemptions": engine.scheduler.num_preemptions,
        }


def _answer(llm: LLM, prompts: list[list[int]], new_tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    assert all(len(output.outputs[0].token_ids) == new_tokens for output in outputs)
    return seconds


if __name__ == "__main__":
    serve(measure)
