"""What fewer bits cost trained models stays within bounds: perplexity of stories, and right answers of the demo job."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.bench.perplexity import measure_perplexity
from headrace.demo.scoring import exact_share

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "quantization", "most_nats"),
    [
        ("babyllama361-hf", "int8", 0.002),
        ("babyllama361-hf", "int8-outliers", 0.002),
        ("babyllama361-hf", "int4", 0.06),
        ("stories260k-hf", "int8", 0.005),
        ("stories260k-hf", "int8-outliers", 0.005),
        ("stories260k-hf", "int4", 0.1),
    ],
)
def test_a_trained_model_is_hardly_more_perplexed_by_stories(
    name: str, quantization: str, most_nats: float, shared_data: Path, record_figure: Callable[[str, str], None]
) -> None:
    text = (shared_data / "text" / "tinystories-val" / "tinystories_val.txt").read_text(encoding="utf-8")[:12_000]
    found = {}
    for each in ("none", quantization):
        with LLM(shared_data / "models" / name, dtype="float32", quantization=each) as llm:
            found[each] = measure_perplexity(llm, text)
    full, packed = found["none"], found[quantization]
    record_figure(
        f"{name} in {quantization}: perplexity of a story, in full precision",
        f"{packed.perplexity:.3f}, {full.perplexity:.3f}",
    )
    assert full.mean_nll < math.log(20), "the model did not learn this"
    assert 0 < abs(packed.mean_nll - full.mean_nll) < most_nats


def test_the_demo_job_is_answered_about_as_well_as_in_full_precision(
    demo_model: str, record_figure: Callable[[str, str], None]
) -> None:
    rows, expected = (
        [json.loads(line) for line in (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()[::2]]
        for name in ("orders.jsonl", "orders_expected.jsonl")
    )
    shares = {}
    for options, most_loss in (
        ({}, 0.0),
        ({"quantization": "int8"}, 0.02),
        ({"quantization": "int8-outliers"}, 0.02),
        ({"quantization": "int4"}, 0.04),
        ({"kv_cache_dtype": "int8"}, 0.02),
        ({"kv_cache_dtype": "int4"}, 0.1),
    ):
        with LLM(demo_model, memory="2GiB", **options) as llm:
            prompts = [llm.tokenizer.encode_chat(row["messages"]) for row in rows]
            outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=200))
        answers = [output.outputs[0].text for output in outputs]
        share = exact_share(answers, [json.dumps(row["expected"]) for row in expected])
        what = " ".join(f"{key}={value}" for key, value in options.items()) or "full precision"
        record_figure(f"demo job with {what}, exactly right", f"{share:.1%}")
        shares[what] = share
        assert abs(share - shares["full precision"]) <= most_loss
