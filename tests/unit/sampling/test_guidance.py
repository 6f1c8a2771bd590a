"""Whatever is drawn from what a guide allows has the form that was asked for."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from headrace.demo import demo_model_path
from headrace.errors import RequestError
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, load_tokenizer
from headrace.sampling.guidance import END_MARK, Guidance, check_structure
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.structured_outputs import StructuredOutputs
from headrace.trace import NoTrace

END, NUM_TEXT_TOKENS, NUM_TOKENS = 1, 768, 800
SEEDS = range(40)

REGEXES = ["[0-9]{3}-[0-9]{2}", "(ja|nein)!?", "[a-z]{1,4}( [a-z]{1,4}){0,3}", "é?[^b]{2}", "^x+y$"]
CHOICES = ["yes", "yes, please", 'a "quoted" \\ one', "line\nbreak\t", "naïve 🙂", "/(", "</s>"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["order", "visit"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "at": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"}]},
    },
    "required": ["kind", "count", "at"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = load_tokenizer(demo_model_path())
    assert isinstance(loaded, Tokenizer)
    return loaded


@contextmanager
def opened(tokenizer: Tokenizer | WithoutTokenizer, ends: tuple[int, ...] = (END,)) -> Iterator[Guidance]:
    guidance = Guidance(tokenizer, num_tokens=NUM_TOKENS, end_token_ids=ends, trace=NoTrace())
    try:
        yield guidance
    finally:
        guidance.close()


@pytest.fixture(scope="module")
def guidance(tokenizer: Tokenizer) -> Iterator[Guidance]:
    with opened(tokenizer) as guidance:
        yield guidance


def sampling(wanted: StructuredOutputs | None, **parameters: Any) -> ResolvedSampling:
    return ResolvedSampling(
        **{"max_tokens": 9, "eos_token_ids": frozenset({END}), "structured_outputs": wanted, **parameters}
    )


def draw(guidance: Guidance, tokenizer: Tokenizer, wanted: StructuredOutputs, seed: int, **parameters: Any) -> str:
    """Returns a text of random tokens, each one of those allowed."""
    guide = guidance.guide(sampling(wanted, **parameters))
    assert guide is not None
    chooser, token_ids = random.Random(seed), list[int]()
    while True:
        allowed = guide.allowed()
        assert allowed.shape == (NUM_TOKENS,) and not allowed[NUM_TEXT_TOKENS:].any()
        token_id = chooser.choice(allowed.nonzero()[0].tolist())
        if token_id == END:
            return tokenizer.decode(token_ids)
        token_ids.append(token_id)
        if guide.accept(token_id):
            return tokenizer.decode(token_ids)


@pytest.mark.parametrize("regex", REGEXES)
def test_every_text_matches_the_expression_as_a_whole(guidance: Guidance, tokenizer: Tokenizer, regex: str) -> None:
    texts = {draw(guidance, tokenizer, StructuredOutputs(regex=regex), seed) for seed in SEEDS}
    assert len(texts) > 1
    assert not [text for text in texts if not re.fullmatch(regex, text)]


def test_every_text_is_one_of_the_choices(guidance: Guidance, tokenizer: Tokenizer) -> None:
    texts = {draw(guidance, tokenizer, StructuredOutputs(choice=CHOICES), seed) for seed in range(200)}
    assert texts == set(CHOICES)


def test_every_text_follows_the_grammar(guidance: Guidance, tokenizer: Tokenizer) -> None:
    balanced = StructuredOutputs(grammar='start: "(" inner ")"\ninner: "x" | "[" inner "]" | inner "y"')
    for seed in SEEDS:
        text = draw(guidance, tokenizer, balanced, seed)
        assert re.fullmatch(r"\([\[\]xy]+\)", text) and text.count("[") == text.count("]")


def test_every_text_is_json_that_the_schema_describes(guidance: Guidance, tokenizer: Tokenizer) -> None:
    for seed in SEEDS:
        value = json.loads(draw(guidance, tokenizer, StructuredOutputs(json=SCHEMA), seed))
        assert list(value) in (["kind", "count", "at"], ["kind", "count", "tags", "at"])
        assert value["kind"] in ("order", "visit") and 1 <= value["count"] <= 120
        assert value["at"] is None or re.fullmatch("[0-9]{2}:[0-9]{2}", value["at"])
        assert len(value.get("tags", ())) <= 3 and all(len(tag) <= 5 for tag in value.get("tags", ()))


def test_spaces_between_the_parts_of_a_json_text_come_to_an_end(guidance: Guidance, tokenizer: Tokenizer) -> None:
    guide = guidance.guide(sampling(StructuredOutputs(json=True)))
    assert guide is not None
    for token_id in tokenizer.encode("{\n" + 12 * " "):
        assert guide.allowed()[token_id]
        guide.accept(token_id)
    assert not guide.allowed()[tokenizer.encode(" ")].any()


def test_end_tokens_may_come_where_the_text_may_end_and_nowhere_else(guidance: Guidance, tokenizer: Tokenizer) -> None:
    """Those of the model and of the request, also one that is text to the tokenizer."""
    (digit,) = tokenizer.encode("7")
    stop = digit + 1  # another digit
    guide = guidance.guide(
        sampling(StructuredOutputs(regex="[0-9]+"), stop_token_ids=frozenset({stop, NUM_TOKENS + 5}))
    )
    assert guide is not None
    assert guide.allowed()[[digit, END, stop]].tolist() == [True, False, False]
    assert not guide.accept(digit)
    assert guide.allowed()[[digit, END, stop]].tolist() == [True, True, True]


def test_ignored_end_tokens_never_come(guidance: Guidance, tokenizer: Tokenizer) -> None:
    guide = guidance.guide(sampling(StructuredOutputs(regex="[0-9]+"), eos_token_ids=frozenset()))
    assert guide is not None
    for token_id in tokenizer.encode("12"):
        assert not guide.allowed()[END]
        assert not guide.accept(token_id)


def test_end_tokens_that_are_text_to_the_tokenizer_are_no_text_of_an_answer(tokenizer: Tokenizer) -> None:
    (letter,) = tokenizer.encode("a")
    with opened(tokenizer, ends=(END, letter)) as guidance:
        guide = guidance.guide(sampling(StructuredOutputs(regex="[a-z]{3}"), eos_token_ids=frozenset({END, letter})))
        assert guide is not None and not guide.allowed()[letter]


def test_guides_of_equal_forms_go_their_own_ways(guidance: Guidance, tokenizer: Tokenizer) -> None:
    first, second = (guidance.guide(sampling(StructuredOutputs(choice=["ab", "cd"]))) for _ in range(2))
    assert first is not None and second is not None
    before = second.allowed()
    assert first.accept(tokenizer.encode("ab")[0]) or not first.allowed().all()
    assert (second.allowed() == before).all()


def test_a_form_is_compiled_once_while_it_is_in_use(guidance: Guidance) -> None:
    def wanted(number: int) -> StructuredOutputs:
        return StructuredOutputs(regex=f"x{number}")

    guidance.check(wanted(0))
    first = guidance._grammars[wanted(0)]
    for number in range(100):
        guidance.check(wanted(0))
        guidance.check(wanted(number))
    assert guidance._grammars[wanted(0)] is first
    assert len(guidance._grammars) == 64 and wanted(1) not in guidance._grammars


def test_no_form_no_guide(guidance: Guidance) -> None:
    assert guidance.guide(sampling(None)) is None


REFUSED = [
    ({"json": {"type": "thing"}}, "the JSON schema is refused: Invalid type: thing"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable schema"),
    ({"json": {"not": {"type": "string"}}}, 'Unimplemented keys: ["not"]'),
    ({"regex": "("}, "the regular expression is refused: at 1(8): invalid regex"),
    ({"regex": "(?=a)b"}, "look-ahead"),
    ({"grammar": "start: other"}, 'the grammar is refused: at 1(8): unknown name: "other"'),
    ({"grammar": 'begin: "a"'}, "no start rule"),
]


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_llguidance_refuses_is_an_error_of_the_request(
    guidance: Guidance, fields: dict[str, Any], reason: str, with_model: bool
) -> None:
    check = guidance.check if with_model else check_structure
    with pytest.raises(RequestError) as caught:
        check(StructuredOutputs(**fields))
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "structured_outputs")


def test_a_grammar_that_comes_to_no_end_fails_where_it_is_found(guidance: Guidance, tokenizer: Tokenizer) -> None:
    guide = guidance.guide(sampling(StructuredOutputs(grammar='start: "x" rest\nrest: rest "y"')))
    assert guide is not None
    (letter,) = tokenizer.encode("x")
    assert guide.allowed()[letter] and not guide.accept(letter)
    with pytest.raises(RequestError, match="cannot follow") as caught:
        guide.allowed()
    assert caught.value.code == "guide_failed"


def test_a_token_that_was_not_allowed_fails_the_guide(guidance: Guidance, tokenizer: Tokenizer) -> None:
    guide = guidance.guide(sampling(StructuredOutputs(regex="[0-9]{3}")))
    assert guide is not None
    assert not guide.accept(tokenizer.encode("x")[0])
    with pytest.raises(RequestError, match="cannot follow"):
        guide.allowed()


@pytest.mark.parametrize("with_model", [True, False])
def test_without_llguidance_it_is_said_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, guidance: Guidance, with_model: bool
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    check = guidance.check if with_model else check_structure
    with pytest.raises(RequestError, match=r"pip install 'headrace\[guided\]'") as caught:
        check(StructuredOutputs(regex="never compiled before"))
    assert caught.value.code == "missing_dependency"


def test_without_a_tokenizer_there_is_no_text_to_guide() -> None:
    with opened(WithoutTokenizer()) as guidance, pytest.raises(RequestError) as caught:
        guidance.check(StructuredOutputs(regex="a"))
    assert caught.value.code == "no_tokenizer"


def test_a_tokenizer_that_llguidance_cannot_read_is_an_error_of_the_request() -> None:
    class Odd(WithoutTokenizer):
        def definition(self, end_mark: str) -> tuple[str, int]:
            return '{"version": "1.0"}', 5

    with opened(Odd()) as guidance, pytest.raises(RequestError, match="cannot read this model's tokenizer") as caught:
        guidance.check(StructuredOutputs(regex="a"))
    assert caught.value.code == "unsupported_tokenizer"


def test_masks_are_reckoned_in_threads_of_the_guidance(tokenizer: Tokenizer) -> None:
    tracks: set[str] = set()

    class Watch(NoTrace):
        def span(self, track: str, name: str, **details: int | str) -> AbstractContextManager[None]:
            tracks.add(f"{track.partition('_')[0]}: {name}")
            return super().span(track, name, **details)

    guidance = Guidance(tokenizer, num_tokens=NUM_TOKENS, end_token_ids=(END,), trace=Watch())
    draw(guidance, tokenizer, StructuredOutputs(regex="[0-9]{4}"), 0)
    guidance.close()
    assert tracks == {"guide: mask"}


def test_the_end_mark_is_no_token_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    text, mark = tokenizer.definition(END_MARK)
    assert mark == NUM_TEXT_TOKENS and END_MARK in text
    assert END_MARK not in tokenizer.definition("another")[0], "the tokenizer itself is as it was"
