"""Perplexity is what transformers' logits say, window by window, for trained models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from headrace import LLM
from headrace.bench.perplexity import Perplexity, measure_perplexity

RELATIVE = 1e-6
"""Of a mean over thousands of tokens; fp32, summed in another order. Measured on a CPU with torch 2.13: below 7e-8."""


@pytest.fixture(scope="module")
def story(shared_data: Path) -> str:
    return (shared_data / "text" / "tinystories-val" / "tinystories_val.txt").read_text(encoding="utf-8")[:12_000]


def reference(model: PreTrainedModel, token_ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """Returns the mean negative log-likelihood of the tokens that count, and their number.

    The loop of https://huggingface.co/docs/transformers/perplexity, but that every token counts once.
    """
    total, num_scored, previous_end = 0.0, 0, 0
    for begin in range(0, len(token_ids), stride):
        end = min(begin + context, len(token_ids))
        window = torch.tensor([token_ids[begin:end]])
        with torch.inference_mode():
            logprobs = model(window).logits[0].double().log_softmax(-1)
        targets = range(max(previous_end, begin + 1), end)
        total -= sum(logprobs[place - begin - 1, token_ids[place]].item() for place in targets)
        num_scored, previous_end = num_scored + len(targets), end
        if end == len(token_ids):
            break
    return total / num_scored, num_scored


def found_by_llm(path: Path, text: str, context: int | None, stride: int | None, **options: object) -> Perplexity:
    with LLM(path, dtype="float32", **options) as llm:  # type: ignore[arg-type]
        return measure_perplexity(llm, text, context=context, stride=stride)


@pytest.mark.parametrize(
    ("name", "context", "stride"),
    [
        ("stories260k-hf", 512, 256),  # the model's whole context
        ("stories260k-hf", 100, 100),
        ("stories260k-mixtral8-hf", 130, 17),
        ("babyllama361-hf", 256, 128),
    ],
)
def test_the_perplexity_of_a_text_is_that_of_transformers(
    name: str, context: int, stride: int, shared_data: Path, story: str, record_figure: Callable[[str, str], None]
) -> None:
    path = shared_data / "models" / name
    text = story[:3_000] if stride == 17 else story
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()
    token_ids = AutoTokenizer.from_pretrained(path)(text, verbose=False)["input_ids"]
    theirs, num_scored = reference(model, token_ids, context, stride)
    ours = found_by_llm(path, text, context, stride, max_num_seqs=512)
    assert (ours.num_tokens, ours.num_scored_tokens) == (len(token_ids), num_scored)
    assert ours.mean_nll == pytest.approx(theirs, rel=RELATIVE)
    assert ours.perplexity == pytest.approx(math.exp(theirs), rel=10 * RELATIVE)
    assert ours.perplexity < 20, "the model did not learn this"
    record_figure(
        f"perplexity of a story, {name}, windows of {context}, {stride} apart, Headrace - transformers",
        f"{ours.perplexity:.6f} - {math.exp(theirs):.6f}",
    )


def test_bits_per_byte_are_bits_per_token_times_tokens_per_byte(shared_data: Path, story: str) -> None:
    path = shared_data / "models" / "stories260k-hf"
    text = story[:1_000] + "naïve"
    found = found_by_llm(path, text, None, None)
    num_words = len(AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, verbose=False)["input_ids"])
    assert (found.num_bytes, found.num_tokens) == (1_006, num_words + 1)  # one token begins the text
    assert found.bits_per_byte == pytest.approx(found.mean_nll / math.log(2) * num_words / 1_006)
    assert (found.context, found.stride) == (512, 256)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 50, "max_num_seqs": 30},
        {"weights_on_device": 0, "max_num_seqs": 40},
        {"enable_prefix_caching": False, "num_micro_batches": 2},
    ],
    ids=lambda options: ", ".join(options),
)
def test_sweeps_and_places_do_not_change_it(
    options: dict[str, object], shared_data: Path, story: str, tmp_path: Path
) -> None:
    path, text = shared_data / "models" / "stories260k-hf", story[:1_500]
    plain = found_by_llm(path, text, 100, 50)
    assert found_by_llm(path, text, 100, 50, disk=tmp_path, **options).mean_nll == pytest.approx(
        plain.mean_nll, rel=RELATIVE
    )
