"""CTranslate2 over static batches; run by `cpu_resident` in CTranslate2's own environment."""

from __future__ import annotations

import time

import ctranslate2

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions


def measure(request: Figures) -> Figures:
    kind = request["options"]["compute_type"]
    supported = ctranslate2.get_supported_compute_types("cpu")
    if kind not in supported:
        return {"failed": f"{kind} is not among what it computes in on this processor: {', '.join(sorted(supported))}"}
    start = time.perf_counter()
    generator = ctranslate2.Generator(
        request["model"], device="cpu", compute_type=kind, inter_threads=1, intra_threads=request["threads"]
    )
    loaded = time.perf_counter() - start

    def answer(prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        arrivals = Arrivals(len(prompts))

        def arrived(step: ctranslate2.GenerationStepResult) -> bool:
            arrivals.add(step.batch_id, step.token_id)
            return False

        generator.generate_batch(
            [[f"w{token}" for token in prompt] for prompt in prompts],
            max_batch_size=batch_size,
            beam_size=1,
            min_length=new_tokens,
            max_length=new_tokens,
            include_prompt_in_result=False,
            callback=arrived,
        )
        return arrivals

    return {
        "settings": f"{generator.compute_type}, {request['threads']} threads",
        "kv_dtype": kind.removeprefix("int8_"),
        "load_seconds": loaded,
        "runs": measure_batches(request, answer),
        "versions": versions("ctranslate2"),
    }


if __name__ == "__main__":
    serve(measure)
