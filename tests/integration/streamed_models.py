"""A small model in several files, and jobs that stream it, for tests of what goes wrong with the files."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from headrace import LLM, SamplingParams
from headrace.jobs.ordered_output import OrderedOutput
from headrace.jobs.rows import RowReader
from headrace.jobs.runner import run_job
from tests.tiny_models import write_tokenizer

VOCAB_SIZE = 97
NUM_LAYERS = 8
PROMPTS = [[1, 5, 9], [7, 3], [11, 2, 45, 60], [8, 80, 9], [1, 2, 3], [90, 14]]
NEW_TOKENS = [2, 4, 16, 16, 16, 16]


def save_sharded(folder: Path, *, hidden_size: int = 128, num_layers: int = NUM_LAYERS, shard: str = "1MB") -> None:
    """Saves a Llama of random weights in fp32 over several files, with a tokenizer of words."""
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # or greedy text would repeat one token
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder, VOCAB_SIZE)


def file_of(folder: Path, parameter: str) -> Path:
    """The file of a sharded model that holds a parameter."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][parameter]


def layer_file(folder: Path, layer: int = NUM_LAYERS // 2) -> Path:
    return file_of(folder, f"model.layers.{layer}.mlp.gate_proj.weight")


@contextmanager
def streamed(folder: Path, **options: object) -> Iterator[LLM]:
    """A model all of whose layers are read from the disk in every sweep; no thread of ours stays afterwards."""
    shape = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64}
    with LLM(folder, **{"memory": "4GiB", "weights_on_device": 0.0, **shape, **options}) as llm:  # type: ignore[arg-type]
        assert "read in every sweep" in llm.description
        assert our_threads()
        yield llm
    assert not our_threads()


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace")]


def tokens_of(llm: LLM) -> list[tuple[int, ...]]:
    """The greedy answers to `PROMPTS`."""
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in NEW_TOKENS]
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


class _AfterARow:
    """Progress that does something once, when the first row is done."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def row_done(self, num_generated_tokens: int) -> None:
        do, self._do = self._do, None
        if do is not None:
            do()

    def note(self, message: str) -> None:
        pass

    def start(self, num_rows: int | None) -> None:
        pass

    def sample(self, name: str, prompt: str, answer: str) -> None:
        pass

    def stop(self) -> None:
        pass


def run_rows(llm: LLM, output: Path, when_a_row_is_done: Callable[[], object] = lambda: None) -> None:
    """Runs `PROMPTS` as a job; the first two are short, so that they end while the others go on."""
    rows = "".join(
        json.dumps({"id": number, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}) + "\n"
        for number, (prompt, count) in enumerate(zip(PROMPTS, NEW_TOKENS, strict=True))
    )
    reader = RowReader(defaults=SamplingParams(), limit=None)
    with OrderedOutput(str(output)) as ordered:
        run_job(
            model=llm,
            rows=reader.read(io.BytesIO(rows.encode())),
            output=ordered,
            progress=_AfterARow(when_a_row_is_done),
        )
