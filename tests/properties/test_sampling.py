"""Text does not depend on how it was cut into tokens and pieces; a row's token not on the rows beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headrace.sampling.detokenizer import IncrementalDetokenizer
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow, sample
from headrace.sampling.stopping import StopStrings


@cache
def load(folder: Path, name: str) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizers" / name / "tokenizer.json"))


def detokenize(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2", "mistral-v0.1"])
@given(data=st.data())
def test_pieces_of_any_tokens_are_the_text_of_all(name: str, shared_data: Path, data: st.DataObject) -> None:
    tokenizer = load(shared_data, name)
    # Low ids are single bytes and special tokens.
    any_id = st.integers(0, 300) | st.integers(0, tokenizer.get_vocab_size() - 1)
    token_ids = data.draw(st.lists(any_id, max_size=60))
    if name == "mistral-v0.1":  # a run of bytes that begins with an ASCII byte: see IncrementalDetokenizer
        ascii_bytes = {tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(128)}
        token_ids = [token_id for token_id in token_ids if token_id not in ascii_bytes]
    assert detokenize(tokenizer, token_ids) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2", "mistral-v0.1"])
@given(text=st.text(max_size=40) | st.text(alphabet="你好，。😀é \n\t'ab.", max_size=40))
def test_pieces_of_any_text_are_the_text(name: str, shared_data: Path, text: str) -> None:
    tokenizer = load(shared_data, name)
    token_ids = tokenizer.encode(text).ids
    assert detokenize(tokenizer, token_ids) == tokenizer.decode(token_ids)


def cut_at_first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition, by reading the text from the start again for every character."""
    for end in range(1, len(text) + 1):
        matched = [string for string in stop if text[:end].endswith(string)]
        if matched:
            longest = max(matched, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=20),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), max_size=4),
)
def test_text_is_cut_at_the_first_stop_string_wherever_the_pieces_end(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    emitted, matched = "", None
    for number, piece in enumerate(pieces, 1):
        text, matched = stops.push(piece)
        emitted += text
        if matched is not None:
            break
        so_far = "".join(pieces[:number])
        assert so_far.startswith(emitted)
        # What is held back could still become a stop string.
        held = so_far[len(emitted) :]
        assert held == "" or any(string.startswith(held) for string in stop)
    else:
        emitted += stops.flush()
    assert (emitted, matched) == cut_at_first_stop("".join(pieces), stop)


@st.composite
def sampling_rows(draw: st.DrawFn) -> SamplingRow:
    sampling = ResolvedSampling(
        max_tokens=10,
        min_tokens=draw(st.integers(0, 3)),
        temperature=draw(st.sampled_from([0.0, 1e-5, 0.3, 1.0, 5.0, 100.0])),
        top_k=draw(st.sampled_from([0, 1, 3, 50, 300, 10**6])),
        top_p=draw(st.sampled_from([0.0, 0.2, 0.9, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.5, 1.0])),
        eos_token_ids=frozenset(draw(st.sets(st.integers(0, 20), max_size=2))),
        logprobs=draw(st.none() | st.integers(0, 5)),
    )
    place = {name: draw(st.integers(0, 5)) for name in ("sample_index", "step", "seed")}
    return SamplingRow(sampling=sampling, **place)


@given(
    rows=st.lists(sampling_rows(), min_size=1, max_size=8),
    num_tokens=st.sampled_from([30, 128, 700]),
    step=st.sampled_from([0.0, 0.001, 1.0]),
    seed=st.integers(0, 10**6),
    max_temporary_bytes=st.integers(0, 200_000),
)
def test_a_row_draws_the_same_whatever_is_beside_it(
    rows: list[SamplingRow], num_tokens: int, step: float, seed: int, max_temporary_bytes: int
) -> None:
    logits = torch.randn(len(rows), num_tokens, generator=torch.Generator().manual_seed(seed)) * 2
    if step:  # many equal logits
        logits = (logits / step).round() * step
    together = sample(logits, rows, max_temporary_bytes=max_temporary_bytes)
    assert together == [sample(logits[place : place + 1], [row])[0] for place, row in enumerate(rows)]
    assert all(token.is_finite and 0 <= token.token_id < num_tokens for token in together)
