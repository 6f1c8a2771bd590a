"""transformers with accelerate's disk offload; run by `beyond_memory` in a process of its own.

As many layers as the memory holds stay in it, the others are on "disk": read from the checkpoint whenever they run, for
a whole static batch. It is slow, so that a few tokens are measured and the rate of a full answer is computed from them:
the prefill once, and the mean of the later passes for every further token.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteriaList
from transformers.utils import logging

from benchmarks.processes import Figures, StorageTraffic, serve
from benchmarks.systems.static_batches import PassTimes, made_contiguous
from headrace.storage.process_memory import peak_resident_bytes, resident_bytes

_LIBRARY_BYTES = 100 * 1024**2
"""What torch and transformers bring in when a model first runs."""


def measure(request: Figures) -> Figures:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(request["model"])
    dtype = getattr(torch, request["dtype"])
    device_map = place(config, dtype, request["memory"] - resident_bytes(), request)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=dtype, device_map=device_map, offload_folder=Path(request["offload_folder"])
    ).eval()
    model.get_output_embeddings().register_forward_pre_hook(made_contiguous)
    loaded = time.perf_counter() - start
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (request["batch_size"], request["prompt_tokens"]))
    passes, num_measured = PassTimes(), min(request["measured_tokens"], request["new_tokens"])
    traffic = StorageTraffic.now()
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_measured,
            max_new_tokens=num_measured,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([passes]),
        )
    assert output.shape[1] == ids.shape[1] + num_measured
    prefill = passes.times[0] - start
    decoding = [later - earlier for earlier, later in itertools.pairwise(passes.times)]
    per_pass = sum(decoding) / len(decoding)
    seconds = prefill + (request["new_tokens"] - 1) * per_pass
    return {
        "load_seconds": loaded,
        "layers_in_memory": sum(device_map[f"model.layers.{i}"] == "cpu" for i in range(config.num_hidden_layers)),
        "prefill_seconds": prefill,
        "pass_seconds": per_pass,
        "measured_tokens": num_measured,
        "seconds_of_full_answers": seconds,
        "generated_tokens_per_second": request["batch_size"] * request["new_tokens"] / seconds,
        **traffic.since(),
        "peak_bytes": peak_resident_bytes(),
    }


def place(config: AutoConfig, dtype: torch.dtype, room_bytes: int, request: Figures) -> dict[str, str]:
    """Returns a device map: embedding, head and the first layers in memory as far as they fit, the others on disk.

    Room is left for a layer that is brought, the KV cache, and what a pass takes for itself.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    layer_bytes = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    embedding_bytes = model.get_input_embeddings().weight.nbytes
    head_bytes = 0 if config.tie_word_embeddings else model.get_output_embeddings().weight.nbytes
    rows, row_tokens = request["batch_size"], request["prompt_tokens"] + request["new_tokens"]
    kv_bytes = 2 * rows * row_tokens * config.num_key_value_heads * config.head_dim * dtype.itemsize
    wide = 3 * config.intermediate_size + 8 * config.hidden_size
    pass_bytes = rows * (request["prompt_tokens"] * wide * dtype.itemsize + 4 * 3 * config.vocab_size)
    room_bytes -= layer_bytes + config.num_hidden_layers * kv_bytes + pass_bytes + _LIBRARY_BYTES
    places = {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    parts = [("model.embed_tokens", embedding_bytes), ("lm_head", head_bytes)]
    parts += [(f"model.layers.{index}", layer_bytes) for index in range(config.num_hidden_layers)]
    for name, num_bytes in parts:
        fits = num_bytes <= room_bytes
        room_bytes -= num_bytes if fits else 0
        places[name] = "cpu" if fits else "disk"
    if config.tie_word_embeddings:
        places["lm_head"] = places["model.embed_tokens"]
    return places


if __name__ == "__main__":
    serve(measure)
