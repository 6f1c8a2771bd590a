from __future__ import annotations

import itertools

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from headrace.demo import demo_model_path
from headrace.demo.notes import Split, notes
from headrace.demo.scoring import exact_share


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype="auto")


def test_the_weights_take_at_most_8_mb() -> None:
    assert (demo_model_path() / "model.safetensors").stat().st_size <= 8_000_000


def test_the_model_is_a_llama_in_bfloat16(model: PreTrainedModel) -> None:
    assert model.config.model_type == "llama"
    assert str(model.dtype) == "torch.bfloat16"


def test_tokens_of_notes_and_answers_decode_to_the_same_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for note in itertools.islice(notes("unseen_patterns", seed=5), 100):
        for text in (note.text, note.answer, "Zoë & 李雷 — naïve 🙂"):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_asks_about_the_last_user_message(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "{}"},
        {"role": "user", "content": "second"},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "<|note|>second<|json|>"


@pytest.mark.parametrize(("split", "bound"), [("unseen_values", 0.85), ("unseen_patterns", 0.65)])
def test_a_sample_of_unseen_notes_is_answered_exactly(
    split: Split, bound: float, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = list(itertools.islice(notes(split, seed=1), 40))
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": note.text}] for note in wanted],
        return_tensors="pt",
        padding=True,
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    produced = model.generate(**inputs, max_new_tokens=160)
    answers = tokenizer.batch_decode(produced[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert exact_share(answers, [note.answer for note in wanted]) >= bound
