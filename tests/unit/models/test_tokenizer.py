"""Text to tokens and back, and chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headrace.errors import CheckpointError, CorruptCheckpointError, OptionError, RequestError
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, load_tokenizer

TEXTS = ("Once upon a time", "", "  two  spaces ", "naïve — 中文 🙂", "line\nbreak\ttab", "</s> and <|im_end|>")


@pytest.fixture(scope="module")
def qwen2(shared_data: Path) -> Path:
    """Byte-level BPE with a chat template; pad and end tokens differ."""
    return shared_data / "tokenizers" / "qwen2"


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    """SentencePiece-like BPE that begins prompts with <s>; no chat template, no pad token."""
    return shared_data / "models" / "stories260k-hf"


def loaded(path: Path, template: Path | None = None) -> Tokenizer:
    tokenizer = load_tokenizer(path, template)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@pytest.mark.parametrize("name", ["tokenizers/qwen2", "models/stories260k-hf"])
def test_tokens_and_text_are_those_of_transformers(shared_data: Path, name: str) -> None:
    ours, theirs = loaded(shared_data / name), AutoTokenizer.from_pretrained(shared_data / name)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip) == expected


def test_a_long_text_warns_of_nothing(stories: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(loaded(stories).encode("Once upon " * 600)) > 512
    assert caplog.text == ""


def test_half_of_a_surrogate_pair_is_refused(stories: Path, qwen2: Path) -> None:
    with pytest.raises(RequestError, match="at character 1") as refused:
        loaded(stories).encode("a\ud800b")
    assert refused.value.code == "invalid_value"
    with pytest.raises(RequestError, match="not text"):
        loaded(qwen2).encode_chat([{"role": "user", "content": "\udc00"}])


def test_end_and_padding_tokens_are_the_tokenizer_s(stories: Path, qwen2: Path) -> None:
    assert (loaded(stories).eos_token_ids, loaded(stories).pad_token_id) == ((2,), None)
    assert (loaded(qwen2).eos_token_ids, loaded(qwen2).pad_token_id) == ((151645,), 151643)


def test_a_padding_token_that_is_the_end_token_as_well_is_none(stories: Path, tmp_path: Path) -> None:
    shutil.copytree(stories, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "</s>"}))
    assert loaded(tmp_path).pad_token_id is None


def test_a_conversation_is_what_the_template_makes_of_it(qwen2: Path) -> None:
    ours, theirs = loaded(qwen2), AutoTokenizer.from_pretrained(qwen2)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "中文?"},
    ]
    assert ours.has_chat_template
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert ours.encode_chat(messages) == expected


def test_without_a_template_there_is_no_conversation(stories: Path) -> None:
    tokenizer = loaded(stories)
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="--chat-template FILE") as refused:
        tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert (refused.value.code, refused.value.param) == ("no_chat_template", "messages")


def test_a_template_from_a_file_replaces_the_checkpoint_s(qwen2: Path, stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("<s>{{ messages[0]['content'] }}:")
    for path in (qwen2, stories):
        tokenizer = loaded(path, file)
        assert (
            tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "Tom"}]), True).strip("<s> ") == "Tom:"
        )


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"content": "x", "role": "tool"}]])
def test_messages_that_the_template_refuses_are_an_error_of_the_request(
    stories: Path, tmp_path: Path, messages: list[dict[str, str]]
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}"
        "{{ m['content'].strip() }}{% endfor %}"
    )
    with pytest.raises(RequestError, match="the chat template refuses these messages") as refused:
        loaded(stories, file).encode_chat(messages)
    assert refused.value.code == "invalid_messages"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_template_file_that_cannot_be_read_is_the_user_s_mistake(
    stories: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OptionError, match="cannot be read"):
        load_tokenizer(stories, file)


def test_a_folder_without_a_tokenizer_is_an_error_unless_none_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer; expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)
    nothing = load_tokenizer(tmp_path, optional=True)
    assert isinstance(nothing, WithoutTokenizer)
    assert nothing.decode([1, 2]) == ""
    for call in (lambda: nothing.encode("x"), lambda: nothing.encode_chat([])):
        with pytest.raises(RequestError, match="token ids") as refused:
            call()
        assert refused.value.code == "no_tokenizer"


def test_a_damaged_tokenizer_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer\.json: not JSON .*download"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_transformers_refuses_names_the_files_it_was_read_from(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Bleep"}}')
    with pytest.raises(CorruptCheckpointError, match=r"the tokenizer cannot be read from tokenizer\.json: "):
        load_tokenizer(tmp_path)


def test_a_template_file_that_does_not_compile_is_the_user_s_mistake(stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}")
    with pytest.raises(OptionError, match="expected a Jinja template"):
        load_tokenizer(stories, file)
