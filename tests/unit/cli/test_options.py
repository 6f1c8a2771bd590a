"""What options become."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from headrace.cli.options import add_sampling_options, describe_sampling, sampling_params
from headrace.errors import OptionError
from headrace.sampling.parameters import GenerationDefaults, ResolvedSampling, SamplingParams
from headrace.sampling.structured_outputs import StructuredOutputs


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


def test_a_form_of_the_answer_is_read_from_its_option(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "answers.lark"
    schema.write_text('{"type": "object"}')
    grammar.write_text('start: "a" | "b"')
    assert parsed("--json-schema", str(schema)).structured_outputs == StructuredOutputs(json=True)
    assert parsed("--regex", "a+").structured_outputs == StructuredOutputs(regex="a+")
    assert parsed("--choice", "a", "--choice", "b").structured_outputs == StructuredOutputs(choice=["a", "b"])
    assert parsed("--grammar", str(grammar)).structured_outputs == StructuredOutputs(grammar='start: "a" | "b"')
    assert "answers of one form (regex)" in describe_sampling(
        resolved(structured_outputs=StructuredOutputs(regex="a+")), max_tokens="9"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "("], r"^--regex: the regular expression is refused: .*unclosed group"),
        (["--json-schema", "nowhere.json"], r"^--json-schema nowhere\.json cannot be read"),
        (["--regex", "a", "--choice", "b"], r"^--regex and --choice: regex and choice are given"),
        (["--regex", "a", "--min-tokens", "3"], r"^--min-tokens: "),
    ],
)
def test_a_form_that_cannot_be_is_refused_before_a_model_is_loaded(arguments: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parsed(*arguments)
