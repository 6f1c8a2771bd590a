"""What the form of an answer costs per token: masks in threads beside sweeps, in the engine's thread, and none.

    python -m benchmarks.guided                                                # the demo model, 32 rows of 64 tokens
    python -m benchmarks.guided --model DIR --load-format dummy --rows 8       # a large vocabulary, random weights

The three take turns, so that whatever else the machine does falls on all; the processor time of the engine's own
thread is counted, too, since other programs change it little. Every answer has exactly `--tokens`
tokens, guided (a JSON list of numbers that does not end sooner) or not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import Executor, Future
from pathlib import Path

from benchmarks.machine import provenance
from benchmarks.reporting import give
from headrace import LLM, GenerationRequest, SamplingParams, StructuredOutputs


class AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, task, /, *arguments, **options):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        future.set_result(task(*arguments, **options))
        return future


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--load-format", choices=["auto", "dummy"], default="auto")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": arguments.tokens}
    guided = SamplingParams(
        structured_outputs=StructuredOutputs(json=numbers), temperature=1, max_tokens=arguments.tokens, ignore_eos=True
    )
    free = SamplingParams(temperature=1, max_tokens=arguments.tokens, ignore_eos=True)
    seconds: dict[str, list[tuple[float, float]]] = {"none": [], "beside": [], "in_turn": []}
    with LLM(arguments.model, load_format=arguments.load_format, max_num_seqs=arguments.rows) as llm:
        vocabulary = llm._engine.guidance._num_tokens  # type: ignore[union-attr]
        guidance = llm._engine.guidance  # type: ignore[union-attr]
        pools = {"none": guidance._pool, "beside": guidance._pool, "in_turn": AtOnce()}
        prompt = tuple(llm.tokenizer.encode("Please send 12 blue folders."))
        for round_ in range(arguments.rounds + 1):
            for name, pool in pools.items():
                guidance._pool = pool
                params = free if name == "none" else guided
                requests = [
                    GenerationRequest(request_id=row, prompt_token_ids=prompt, params=params)
                    for row in range(arguments.rows)
                ]
                begin = time.perf_counter(), time.thread_time()
                num_tokens = sum(len(output.outputs[0].token_ids) for output in llm.run(requests))
                assert num_tokens == arguments.rows * arguments.tokens
                if round_:  # the first brings in code and the grammar
                    spent = time.perf_counter() - begin[0], time.thread_time() - begin[1]
                    seconds[name].append((spent[0] / num_tokens, spent[1] / num_tokens))
        guidance._pool = pools["beside"]
    result = {
        **provenance(),
        "model": arguments.model,
        "vocabulary": vocabulary,
        "microseconds_per_token": {
            name: {
                part: round(1e6 * statistics.median(values))
                for part, values in zip(("all", "engine_thread"), zip(*pairs, strict=True), strict=True)
            }
            for name, pairs in seconds.items()
        },
    }
    give(result, arguments.output)


if __name__ == "__main__":
    main()
