"""What options become."""

from __future__ import annotations

import argparse

import pytest

from headrace.cli.options import add_sampling_options, describe_sampling, sampling_params
from headrace.errors import OptionError
from headrace.sampling.parameters import GenerationDefaults, ResolvedSampling, SamplingParams


def parsed(*arguments: str) -> SamplingParams:
    parser = argparse.ArgumentParser()
    add_sampling_options(parser, max_tokens_default="1024")
    return sampling_params(parser.parse_args(arguments))


def test_what_is_not_given_is_left_open() -> None:
    assert parsed() == SamplingParams()


def test_what_is_given_is_taken() -> None:
    assert parsed(
        "--max-tokens", "5", "--min-tokens", "1", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "-1",
        "--min-p", "0.1", "--stop", "a", "--stop", "b", "--ignore-eos",
    ) == SamplingParams(
        max_tokens=5, min_tokens=1, temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, stop=("a", "b"), ignore_eos=True,
    )  # fmt: skip


def test_a_value_that_cannot_be_names_its_option() -> None:
    with pytest.raises(OptionError, match=r"^--top-p: top_p is 2\.0; expected a number from 0 to 1"):
        parsed("--top-p", "2")


def resolved(**params: object) -> ResolvedSampling:
    return SamplingParams(**params).resolve(GenerationDefaults(), default_max_tokens=9, room=99)  # type: ignore[arg-type]


def test_the_start_line_tells_what_is_on() -> None:
    assert describe_sampling(resolved(), max_tokens="9 (default)") == (
        "sampling: temperature 0 (greedy), max_tokens 9 (default)"
    )
    everything = resolved(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, min_tokens=2, stop=["\n", "b"])
    assert describe_sampling(everything, max_tokens="9") == (
        "sampling: temperature 0.7, top_k 5, top_p 0.9, min_p 0.1, max_tokens 9, min_tokens 2, stop '\\n' 'b'"
    )
