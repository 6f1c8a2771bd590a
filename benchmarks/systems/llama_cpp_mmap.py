"""llama.cpp over a memory-mapped file, a row at a time, where llama-cpp-python is installed; run by `beyond_memory`."""

from __future__ import annotations

import importlib.util
import itertools
import random
import time

from benchmarks.processes import Figures, StorageTraffic, serve
from headrace.storage.process_memory import peak_resident_bytes


def missing(gguf: str | None) -> str | None:
    """Returns why llama.cpp cannot be measured here; None if it can."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "not installed"
    return None if gguf else "no model: give --gguf a file of the same shape and dtype"


def measure(request: Figures) -> Figures:
    from llama_cpp import Llama

    start = time.perf_counter()
    llama = Llama(
        model_path=request["gguf"],
        n_ctx=request["prompt_tokens"] + request["new_tokens"],
        use_mmap=True,
        verbose=False,
    )
    loaded = time.perf_counter() - start
    draw = random.Random(0)
    prompt = [draw.randrange(llama.n_vocab()) for _ in range(request["prompt_tokens"])]
    num_measured = min(request["measured_tokens"], request["new_tokens"])
    traffic = StorageTraffic.now()
    start = time.perf_counter()
    times = [time.perf_counter() for _ in itertools.islice(llama.generate(prompt, temp=0.0), num_measured)]
    prefill = times[0] - start
    per_pass = (times[-1] - times[0]) / (num_measured - 1)
    seconds = prefill + (request["new_tokens"] - 1) * per_pass
    return {
        "load_seconds": loaded,
        "prefill_seconds": prefill,
        "pass_seconds": per_pass,
        "measured_tokens": num_measured,
        "seconds_of_full_answers": seconds,
        "generated_tokens_per_second": request["new_tokens"] / seconds,
        **traffic.since(),
        "peak_bytes": peak_resident_bytes(),
    }


if __name__ == "__main__":
    serve(measure)
