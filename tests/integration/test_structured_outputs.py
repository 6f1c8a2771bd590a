"""Answers of a given form, on trained models: always of that form, and no other row is changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import LLM, GenerationRequest, RequestOutput, SamplingParams, StructuredOutputs
from headrace.errors import RequestError
from tests.few_blocks import leave_few_blocks
from tests.integration.commands import headrace

NOTES = [
    "Please send 12 blue folders to Mrs. Ellen Moran on 3 March 2027.",
    "haircut for Omar at 9:30 tomorrow",
    "two loaves of rye bread for Ann Miller on friday, 4 of the buns",
    "nothing of note today",
]
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["order"]},
        "customer": {"type": "string", "maxLength": 30},
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "quantity": {"type": "integer", "minimum": 1, "maximum": 9999},
                    "product": {"type": "string", "maxLength": 20},
                },
                "required": ["quantity", "product"],
                "additionalProperties": False,
            },
        },
        "date": {"anyOf": [{"type": "string", "pattern": f"^{DATE}$"}, {"type": "null"}]},
    },
    "required": ["type", "customer", "items", "date"],
    "additionalProperties": False,
}
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "good": {"type": "boolean"}},
    "required": ["name", "good"],
    "additionalProperties": False,
}
BEGIN = [1, 45, 60]


def is_order(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["type", "customer", "items", "date"]
        and value["type"] == "order"
        and len(value["customer"]) <= 30
        and 1 <= len(value["items"]) <= 2
        and all(list(item) == ["quantity", "product"] for item in value["items"])
        and all(1 <= item["quantity"] <= 9999 and len(item["product"]) <= 20 for item in value["items"])
        and (value["date"] is None or re.fullmatch(DATE, value["date"]) is not None)
    )


def is_short(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["name", "good"] and len(value["name"]) <= 8 and isinstance(value["good"], bool)


@pytest.fixture(scope="module")
def demo(demo_model: str) -> Iterator[LLM]:
    with LLM(demo_model, memory="2GiB", max_num_seqs=48) as llm:
        yield llm


@pytest.fixture(scope="module", params=["stories260k-hf", "babyllama361-hf"])
def trained(request: pytest.FixtureRequest, shared_data: Path) -> Iterator[LLM]:
    """SentencePiece tokenizers that know nothing of JSON, beside a model that knows as little."""
    with LLM(shared_data / "models" / request.param, memory="2GiB", max_num_seqs=48) as llm:
        yield llm


def asked(llm: LLM, number: int, note: str = NOTES[0], **params: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=number,
        prompt_token_ids=tuple(llm.tokenizer.encode_chat([{"role": "user", "content": note}])),
        params=SamplingParams(**params),
    )


def run(llm: LLM, requests: Sequence[GenerationRequest]) -> list[RequestOutput]:
    """Returns the outputs in the order of the requests."""
    outputs = {output.request_id: output for output in llm.run(requests)}
    return [outputs[request.request_id] for request in requests]


def tokens_of(output: RequestOutput) -> list[tuple[int, ...]]:
    assert output.error is None
    return [answer.token_ids for answer in output.outputs]


@pytest.mark.parametrize("note", NOTES)
def test_greedy_json_is_valid(demo: LLM, note: str) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(json=ORDER), temperature=0, max_tokens=400)
    (answer,) = demo.chat([{"role": "user", "content": note}], params).outputs
    assert answer.finish_reason == "stop" and is_order(answer.text)


def test_json_at_temperature_1_is_valid_for_every_seed(demo: LLM) -> None:
    requests = [
        asked(demo, seed, NOTES[seed % 4], structured_outputs=StructuredOutputs(json=ORDER), temperature=1, seed=seed,
              max_tokens=400)
        for seed in range(64)
    ]  # fmt: skip
    answers = [output.outputs[0] for output in run(demo, requests)]
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert len({answer.text for answer in answers}) > 10
    assert not [answer.text for answer in answers if not is_order(answer.text)]


def test_what_the_model_would_say_anyway_stays_as_it_is(demo: LLM) -> None:
    """The form is one that the answer has: the mask takes nothing away from it but what does not come."""
    free = demo.chat([{"role": "user", "content": NOTES[0]}], SamplingParams(temperature=0)).outputs[0]
    params = SamplingParams(temperature=0, structured_outputs=StructuredOutputs(json=ORDER))
    guided = demo.chat([{"role": "user", "content": NOTES[0]}], params).outputs[0]
    assert guided.text == free.text


def test_json_cut_at_max_tokens_is_a_beginning_and_says_so(demo: LLM) -> None:
    wanted = StructuredOutputs(json=ORDER)
    whole = run(demo, [asked(demo, 0, structured_outputs=wanted, temperature=0, max_tokens=400)])[0].outputs[0]
    lengths = range(1, len(whole.token_ids) + 1)
    params = {"structured_outputs": wanted, "temperature": 0}
    for length, output in zip(
        lengths, run(demo, [asked(demo, length, max_tokens=length, **params) for length in lengths]), strict=True
    ):
        (answer,) = output.outputs
        assert whole.text.startswith(answer.text)
        assert answer.finish_reason == ("length" if length < len(whole.token_ids) else "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_models_that_know_no_json_write_it_too(trained: LLM, temperature: float) -> None:
    params = SamplingParams(
        structured_outputs=StructuredOutputs(json=SHORT), temperature=temperature, n=60 if temperature else 1,
        max_tokens=250, seed=0,
    )  # fmt: skip
    (output,) = trained.generate([BEGIN], params)
    assert not [answer.text for answer in output.outputs if not is_short(answer.text)]
    assert {answer.finish_reason for answer in output.outputs} == {"stop"}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_answer_ends_where_nothing_but_the_end_can_follow(trained: LLM, ignore_eos: bool) -> None:
    """It needs no end token for it."""
    wanted = StructuredOutputs(regex="[a-z]{2}[0-9]{3}!")
    params = SamplingParams(
        structured_outputs=wanted, temperature=1, n=40, seed=1, max_tokens=40, ignore_eos=ignore_eos
    )
    (output,) = trained.generate([BEGIN], params)
    for answer in output.outputs:
        assert re.fullmatch("[a-z]{2}[0-9]{3}!", answer.text)
        assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
        assert trained.tokenizer.decode(answer.token_ids).endswith("!")


def test_stop_strings_and_stop_tokens_go_with_a_form(trained: LLM) -> None:
    """A stop string cuts the text where it comes; a stop token comes only where the text may end."""
    wanted = StructuredOutputs(regex="a{4}(b+)")
    (cut,) = trained.generate(
        [BEGIN], SamplingParams(structured_outputs=wanted, stop=["b"], max_tokens=20, temperature=0)
    )
    assert (cut.outputs[0].text, cut.outputs[0].stop_reason) == ("aaaa", "b")
    ends = list(range(3, 200))
    params = SamplingParams(
        structured_outputs=wanted, stop_token_ids=ends, max_tokens=20, temperature=1, n=20, seed=3, ignore_eos=True
    )
    (ended,) = trained.generate([BEGIN], params)
    for answer in ended.outputs:
        assert answer.finish_reason == "length" or answer.stop_reason in ends
        assert re.fullmatch("a{4}b+", answer.text)


def test_rows_of_several_forms_and_of_none_do_not_change_each_other(demo: LLM) -> None:
    forms = [
        None,
        StructuredOutputs(json=ORDER),
        None,
        StructuredOutputs(regex="[A-Z][a-z]+ [0-9]{3}"),
        StructuredOutputs(choice=["yes", "no", "not at all"]),
        None,
        StructuredOutputs(grammar='start: "<" WORD ("," WORD)* ">"\nWORD: /[a-z]{1,5}/'),
    ]
    requests = [
        asked(demo, number, NOTES[number % 4], structured_outputs=form, temperature=temperature, seed=number,
              max_tokens=60, n=1 + number % 2, logprobs=2)
        for temperature in (0.0, 1.0)
        for number, form in enumerate(forms, start=100 * round(temperature))
    ]  # fmt: skip
    together = run(demo, requests)
    assert [tokens_of(output) for output in together] == [tokens_of(run(demo, [row])[0]) for row in requests]
    for form, output in zip([*forms, *forms], together, strict=True):
        for answer in output.outputs:
            if form is None or answer.finish_reason == "length":
                continue
            match form.kind:
                case "json":
                    assert is_order(answer.text)
                case "regex":
                    assert re.fullmatch("[A-Z][a-z]+ [0-9]{3}", answer.text)
                case "choice":
                    assert answer.text in ("yes", "no", "not at all")
                case "grammar":
                    assert re.fullmatch("<[a-z]{1,5}(,[a-z]{1,5})*>", answer.text)


def test_logprobs_are_those_of_the_model_and_not_of_the_form(demo: LLM) -> None:
    params = {"structured_outputs": StructuredOutputs(choice=["zzz"]), "logprobs": 3, "temperature": 0}
    (answer,) = run(demo, [asked(demo, 0, **params)])[0].outputs
    assert answer.text == "zzz" and answer.logprobs is not None
    assert all(place.logprob < 0 and len(place.top) == 3 for place in answer.logprobs)
    assert answer.logprobs[0].rank > 3, "the model would have said something else"


def test_guided_rows_that_give_up_their_kv_go_on_where_they_were(demo_model: str) -> None:
    with LLM(demo_model, memory="2GiB", max_num_seqs=8) as llm:
        requests = [
            asked(llm, number, NOTES[number % 4], structured_outputs=StructuredOutputs(json=ORDER), temperature=1,
                  max_tokens=300, seed=number)
            for number in range(8)
        ]  # fmt: skip
        expected = [tokens_of(output) for output in run(llm, requests)]
        leave_few_blocks(llm, 5)
        outputs = run(llm, requests)
        assert sum(output.metrics.num_preemptions for output in outputs if output.metrics is not None) > 0
        assert [tokens_of(output) for output in outputs] == expected


def test_a_row_whose_form_cannot_be_followed_fails_alone(demo: LLM) -> None:
    free = asked(demo, 0, temperature=0, max_tokens=20)
    bad = {
        1: (StructuredOutputs(json={"type": "thing"}), {}, "invalid_value"),
        2: (StructuredOutputs(grammar='start: "x" rest\nrest: rest "y"'), {}, "guide_failed"),
        3: (StructuredOutputs(regex="7+"), {"bad_words": ["7", "77"]}, "no_token_left"),
        4: (StructuredOutputs(regex="|"), {"ignore_eos": True}, "no_token_left"),
    }
    rows = [asked(demo, n, structured_outputs=form, n=2, **more) for n, (form, more, _) in bad.items()]
    expected = run(demo, [free])
    outputs = run(demo, [rows[0], free, *rows[1:]])
    assert tokens_of(outputs[1]) == tokens_of(expected[0])
    found = [output.error for output in outputs if output is not outputs[1]]
    assert [error and error.code for error in found] == [code for *_, code in bad.values()]
    with pytest.raises(RequestError, match="Invalid type: thing"):
        demo.generate([BEGIN], SamplingParams(structured_outputs=StructuredOutputs(json={"type": "thing"})))


def test_an_empty_text_is_an_end_token_alone(demo: LLM) -> None:
    (answer,) = run(demo, [asked(demo, 0, structured_outputs=StructuredOutputs(regex="|"))])[0].outputs
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("", "stop", 1)


def test_logits_processors_change_their_own_rows_only(demo: LLM) -> None:
    def only_even(prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
        return logits.masked_fill(torch.arange(len(logits)) % 2 == 1, -torch.inf)

    def broken_later(prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
        if len(output_ids) == 3:
            raise ZeroDivisionError("by three")
        return logits

    free, even, broken = (
        asked(demo, number, temperature=0, max_tokens=12, ignore_eos=True, logits_processors=processors)
        for number, processors in enumerate([(), (only_even,), (broken_later,)])
    )
    outputs = run(demo, [free, even, broken])
    assert tokens_of(outputs[0]) == tokens_of(run(demo, [free])[0])
    assert all(token_id % 2 == 0 for token_id in tokens_of(outputs[1])[0])
    error = outputs[2].error
    assert error is not None and error.code == "logits_processor_failed"
    assert "broken_later failed: ZeroDivisionError: by three" in str(error)


def test_masks_are_reckoned_in_threads_beside_the_sweeps(demo_model: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with LLM(demo_model, memory="2GiB", trace=file) as llm:
        wanted = StructuredOutputs(json=ORDER)
        (output,) = run(llm, [asked(llm, 0, structured_outputs=wanted, temperature=0, n=2, max_tokens=30)])
    events = json.loads(file.read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    masks = [tracks[event["tid"]] for event in events if event["name"] == "mask"]
    # One that both answers begin with, and one after each of their tokens but the last.
    assert len(masks) == 1 + sum(len(token_ids) - 1 for token_ids in tokens_of(output))
    assert {name.partition("_")[0] for name in masks} == {"guide"}


def test_a_job_has_rows_of_every_form_and_one_bad_one(demo_model: str, tmp_path: Path) -> None:
    def row(name: str, **fields: object) -> dict[str, object]:
        return {"id": name, "messages": [{"role": "user", "content": NOTES[0]}], **fields}

    schema_format = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER}}
    rows = [
        row("schema", response_format=schema_format, temperature=1, seed=5),
        row("bad", guided_json={"type": "thing"}),
        row("regex", structured_outputs={"regex": "[0-9]{4}"}),
        row("choice", guided_choice=["red", "blue"]),
        row("grammar", guided_grammar='start: "[" /[0-9]/ "]"'),
        row("object", response_format={"type": "json_object"}, max_tokens=4),
        row("text", response_format={"type": "text"}, max_tokens=4),
        row("default", max_tokens=8),
    ]
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(fields) + "\n" for fields in rows))
    command = ["run", source, "-o", target, "--model", demo_model, "--memory", "2GiB", "--choice", "by default", "-q"]
    assert headrace(*command).status == 1
    answers = {answer["id"]: answer for answer in map(json.loads, target.read_text().splitlines())}
    assert list(answers) == [fields["id"] for fields in rows]
    assert is_order(answers["schema"]["text"])
    assert answers["bad"]["error"]["code"] == "invalid_value" and "Invalid type" in answers["bad"]["error"]["message"]
    assert re.fullmatch("[0-9]{4}", answers["regex"]["text"])
    assert answers["choice"]["text"] in ("red", "blue")
    assert re.fullmatch(r"\[[0-9]\]", answers["grammar"]["text"])
    assert (answers["object"]["finish_reason"], answers["object"]["text"][0]) == ("length", "{")
    assert answers["text"]["text"] != answers["default"]["text"] == "by default"


def test_a_form_that_is_none_ends_the_command_at_once(demo_model: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "thing"}')
    ran = headrace("generate", "--model", demo_model, "--json-schema", schema, "x")
    assert (ran.status, ran.stdout) == (2, b"")
    assert ran.stderr == "headrace: --json-schema: the JSON schema is refused: Invalid type: thing\n"


def test_generate_writes_an_answer_of_the_form(demo_model: str) -> None:
    ran = headrace(
        "generate", "--model", demo_model, "--memory", "2GiB", "--regex", "[0-9]{3}-[a-z]{2}", "-q", "Note: x"
    )
    assert ran.status == 0 and re.fullmatch(rb"[0-9]{3}-[a-z]{2}\n", ran.stdout)
