"""llama.cpp, all rows in one context; run by `cpu_resident` in llama.cpp's own environment."""

from __future__ import annotations

import ctypes
import time

import llama_cpp
import numpy as np

from benchmarks.processes import Figures, serve
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches, versions

_CELLS = 256
"""Contexts are made in multiples of so many tokens."""


class Context:
    """A model with a KV cache for some rows."""

    def __init__(self, request: Figures) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(request["model"].encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise SystemExit("llama.cpp does not load the model")
        options = llama_cpp.llama_context_default_params()
        options.n_seq_max = request["rows"]
        options.n_ctx = request["rows"] * -(-request["row_tokens"] // _CELLS) * _CELLS
        options.n_threads = options.n_threads_batch = request["threads"]
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise SystemExit("llama.cpp makes no context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._most_tokens = options.n_batch
        self._batch = llama_cpp.llama_batch_init(self._most_tokens, 0, 1)

    def answer(self, prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        """Computes all prompts, as many tokens at a time as a batch takes, and then one token of each row at a time."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        arrivals = Arrivals(len(prompts))
        self._run(
            [
                (row, position, token, position + 1 == len(prompt))
                for row, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ],
            arrivals,
        )
        for step in range(new_tokens - 1):
            last = [(row, len(prompt) + step, arrivals.tokens[row][-1], True) for row, prompt in enumerate(prompts)]
            self._run(last, arrivals)
        return arrivals

    def _run(self, tokens: list[tuple[int, int, int, bool]], arrivals: Arrivals) -> None:
        """Runs tokens, each with its row, its position, and whether the next one is wanted."""
        batch = self._batch
        for begin in range(0, len(tokens), self._most_tokens):
            some = tokens[begin : begin + self._most_tokens]
            batch.n_tokens = len(some)
            for index, (row, position, token, wanted) in enumerate(some):
                batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            status = llama_cpp.llama_decode(self._context, batch)
            if status:
                raise RuntimeError(f"llama_decode: {status}")
            for index, (row, _, _, wanted) in enumerate(some):
                if wanted:
                    logits = llama_cpp.llama_get_logits_ith(self._context, index)
                    arrivals.add(row, int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax()))


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def measure(request: Figures) -> Figures:
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    start = time.perf_counter()
    context = Context(request)
    loaded = time.perf_counter() - start
    return {
        "settings": llama_cpp.llama_print_system_info().decode().strip(),
        "kv_dtype": "float16",
        "load_seconds": loaded,
        "runs": measure_batches(request, context.answer),
        "versions": versions("llama-cpp-python"),
    }


if __name__ == "__main__":
    serve(measure)
