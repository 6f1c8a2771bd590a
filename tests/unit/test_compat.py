"""Generation in the spelling of FlexGen and of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import headrace
from headrace import LLM
from headrace.compat import generate
from headrace.errors import RequestError

TEXTS = ["Once upon a time", "Lily and Tom saw a big dog. The dog", "The"]
PAD = 0


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260k-hf"


@pytest.fixture(scope="module")
def llm(stories: Path) -> Iterator[LLM]:
    with LLM(stories, memory="2GiB", max_num_batched_tokens=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(stories: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()


def padded(llm: LLM, side: str) -> tuple[Tensor, Tensor]:
    """The texts as ids and mask (3, T)."""
    rows = [llm.tokenizer.encode(text) for text in TEXTS]
    width = max(map(len, rows))
    fills = [[PAD] * (width - len(row)) for row in rows]
    ids = [fill + row if side == "left" else row + fill for row, fill in zip(rows, fills, strict=True)]
    mask = [
        [0] * len(fill) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(fill)
        for row, fill in zip(rows, fills, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def test_a_left_padded_batch_gives_what_transformers_generates(llm: LLM, reference: PreTrainedModel) -> None:
    ids, mask = padded(llm, "left")
    expected = reference.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False, pad_token_id=PAD)
    found = generate(llm, ids, attention_mask=mask, max_new_tokens=40, pad_token_id=PAD)
    assert found.dtype == ids.dtype
    assert found.tolist() == expected.tolist()


def test_end_tokens_end_rows_and_padding_fills_them_as_in_transformers(llm: LLM, reference: PreTrainedModel) -> None:
    ids, mask = padded(llm, "left")
    free = generate(llm, ids, attention_mask=mask, max_new_tokens=30, pad_token_id=PAD)
    ends = [int(free[0, ids.shape[1] + 4]), int(free[1, ids.shape[1] + 11])]
    expected = reference.generate(
        ids, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=PAD, eos_token_id=ends
    )
    for spelled in ({"eos_token_id": ends}, {"stop": ends}, {"stop": ends[0], "eos_token_id": ends[1]}):
        found = generate(llm, ids, attention_mask=mask, max_new_tokens=30, pad_token_id=PAD, **spelled)  # type: ignore[arg-type]
        assert found.tolist() == expected.tolist()


def test_one_stop_token_of_flexgen_may_be_0_and_without_a_padding_token_it_fills(llm: LLM) -> None:
    ids = [llm.tokenizer.encode(text) for text in TEXTS[:1]] * 2
    free = generate(llm, ids, max_new_tokens=10)
    stop = free[0][len(ids[0]) + 3]
    first = free[0].index(stop, len(ids[0]))
    stopped = generate(llm, ids, max_new_tokens=10, stop=stop)
    assert stopped == [row[: first + 1] for row in free]
    assert generate(llm, ids, max_new_tokens=10, stop=0) == free


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_not_read(llm: LLM, side: str) -> None:
    ids, mask = padded(llm, side)
    found = generate(llm, ids, attention_mask=mask, max_new_tokens=12, pad_token_id=PAD)
    for row, text in zip(found, TEXTS, strict=True):
        alone = generate(llm, [llm.tokenizer.encode(text)], max_new_tokens=12)[0]
        assert row[ids.shape[1] :].tolist() == alone[len(llm.tokenizer.encode(text)) :]
    assert found[:, : ids.shape[1]].tolist() == ids.tolist()


def test_without_a_mask_padding_tokens_are_taken_for_padding_as_in_transformers(
    llm: LLM, reference: PreTrainedModel
) -> None:
    ids, mask = padded(llm, "left")
    found = generate(llm, ids, max_new_tokens=12, pad_token_id=PAD)
    assert found.tolist() == generate(llm, ids, attention_mask=mask, max_new_tokens=12, pad_token_id=PAD).tolist()
    expected = reference.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=PAD)
    assert found.tolist() == expected.tolist()
    unpadded = generate(llm, ids, max_new_tokens=12)  # this tokenizer has no padding token
    assert unpadded.tolist() != found.tolist()


def test_the_tokenizer_s_own_padding_token_is_known(stories: Path, llm: LLM, tmp_path: Path) -> None:
    """FlexGen's users pad with the tokenizer and pass neither a mask nor the padding token."""
    shutil.copytree(stories, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(511)})
    tokenizer.save_pretrained(tmp_path)
    tokenizer.padding_side = "left"
    ids = tokenizer(TEXTS, padding=True)["input_ids"]
    assert 511 in ids[0]
    with LLM(tmp_path, memory="1GiB", max_model_len=128, max_num_batched_tokens=64) as padding:
        found = generate(padding, ids, max_new_tokens=8)
    expected, mask = padded(llm, "left")
    plain = generate(llm, expected, attention_mask=mask, max_new_tokens=8)
    assert [row[-8:] for row in found] == plain[:, -8:].tolist()


def test_flexgen_s_call_gives_an_array_of_prompts_and_answers(llm: LLM) -> None:
    inputs = np.array([llm.tokenizer.encode("Once upon a time")] * 3, dtype=np.int32)
    output_ids = headrace.compat.generate(llm, inputs, do_sample=True, temperature=0.7, max_new_tokens=48, stop=None)
    assert isinstance(output_ids, np.ndarray)
    assert (output_ids.shape, output_ids.dtype) == ((3, inputs.shape[1] + 48), np.int32)
    assert (output_ids[:, : inputs.shape[1]] == inputs).all()
    assert len({tuple(row) for row in output_ids.tolist()}) == 3


def test_the_answer_is_of_the_kind_of_the_question(llm: LLM) -> None:
    row = llm.tokenizer.encode("Once upon a time")
    expected = generate(llm, [row], max_new_tokens=5)
    assert isinstance(expected, list)
    for ids in (torch.tensor(row), torch.tensor([row]), np.array(row), np.array([row], dtype=np.uint16)):
        found = generate(llm, ids, max_new_tokens=5)
        assert type(found) is type(ids) and found.dtype == ids.dtype
        assert found.tolist() == expected
    ragged = generate(llm, [row, row[:3]], max_new_tokens=5)
    assert [len(answer) for answer in ragged] == [len(row) + 5, 3 + 5]


def test_several_answers_per_prompt_are_neighbours(llm: LLM) -> None:
    ids, mask = padded(llm, "left")
    found = generate(
        llm,
        ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=9,
        seed=4,
        pad_token_id=PAD,
    )
    assert found.shape == (9, ids.shape[1] + 9)
    assert found[:, : ids.shape[1]].tolist() == ids.repeat_interleave(3, dim=0).tolist()
    assert len({tuple(row) for row in found[:3].tolist()}) == 3
    again = generate(
        llm,
        ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=9,
        seed=4,
        pad_token_id=PAD,
    )
    assert again.tolist() == found.tolist()


def test_a_temperature_without_do_sample_changes_nothing(llm: LLM) -> None:
    row = [llm.tokenizer.encode("Once upon a time")]
    assert generate(llm, row, temperature=0.7, max_new_tokens=9) == generate(llm, row, max_new_tokens=9)


def test_min_new_tokens_keeps_an_end_from_coming_early(llm: LLM) -> None:
    row = [llm.tokenizer.encode("Once upon a time")]
    stop = generate(llm, row, max_new_tokens=3)[0][-3]
    assert len(generate(llm, row, max_new_tokens=12, stop=stop)[0]) == len(row[0]) + 1
    assert len(generate(llm, row, max_new_tokens=12, stop=stop, min_new_tokens=8)[0]) > len(row[0]) + 8


@pytest.mark.parametrize(
    ("ids", "mask", "param"),
    [
        ([], None, "input_ids"),
        ([[1, 2]], [[1]], "attention_mask"),
        ([[1, 2]], [[1, 1], [1, 1]], "attention_mask"),
        ([[1, 2]], [[0, 0]], "prompt"),
        ([[1, 600]], None, "prompt"),
    ],
    ids=["nothing", "a short mask", "a mask of more rows", "a row of padding", "no such token"],
)
def test_what_cannot_be_generated_from_is_an_error_that_names_it(
    llm: LLM, ids: list[list[int]], mask: list[list[int]] | None, param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        generate(llm, ids, attention_mask=mask, max_new_tokens=2)
    assert refused.value.param == param
