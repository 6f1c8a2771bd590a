"""Text to tokens and back, and chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from headrace.errors import CheckpointError, CorruptCheckpointError, OptionError, RequestError
from headrace.models.chat import ChatMessage, ChatOptions
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


def loaded(path: Path, template: Path | str | None = None) -> Tokenizer:
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


def test_special_tokens_are_those_that_stand_for_no_text(stories: Path, qwen2: Path) -> None:
    assert loaded(stories).special_token_ids == {0, 1, 2}
    assert loaded(qwen2).special_token_ids >= {151643, 151644, 151645}
    assert WithoutTokenizer().special_token_ids == frozenset()


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


USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def templated(source: Path, folder: Path, **values: object) -> Path:
    """A copy of the tokenizer in `source` with other values in its tokenizer_config.json; None leaves one out."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | values
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def said(tokenizer: Tokenizer, *messages: ChatMessage, **options: Any) -> str:
    return tokenizer.decode(tokenizer.encode_chat(messages or [USER], ChatOptions(**options)), False)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"])
def test_a_template_is_found_wherever_it_is(stories: Path, tmp_path: Path, where: str) -> None:
    template = "{{ messages[0]['content'] }}:"
    templated(stories, tmp_path, chat_template=template if where == "tokenizer_config.json" else None)
    if where != "tokenizer_config.json":
        content = template if where.endswith(".jinja") else json.dumps({"chat_template": template})
        (tmp_path / where).write_text(content)
    assert said(loaded(tmp_path)).strip() == "Hi:"


@pytest.mark.parametrize("as_files", [True, False])
def test_of_several_templates_the_default_is_used_and_others_by_name_or_for_tools(
    stories: Path, tmp_path: Path, as_files: bool
) -> None:
    templates = {"default": "plain", "tool_use": "tools {{ tools[0].function.name }}", "rag": "texts"}
    if as_files:
        templated(stories, tmp_path)
        (tmp_path / "chat_template.jinja").write_text(templates["default"])
        (tmp_path / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(templates[name])
    else:
        listed = [{"name": name, "template": template} for name, template in templates.items()]
        templated(stories, tmp_path, chat_template=listed)
    assert said(loaded(tmp_path)).strip() == "plain"
    assert said(loaded(tmp_path), tools=(TOOL,)).strip() == "tools weather"
    assert said(loaded(tmp_path, "rag")).strip() == "texts"
    with pytest.raises(OptionError, match="the model's own are named default, rag, tool_use"):
        load_tokenizer(tmp_path, "summary")


def test_without_a_default_among_several_templates_one_must_be_chosen(stories: Path, tmp_path: Path) -> None:
    templated(stories, tmp_path, chat_template=[{"name": "rag", "template": "texts"}])
    with pytest.raises(RequestError, match="give --chat-template rag") as refused:
        loaded(tmp_path).encode_chat([USER])
    assert refused.value.code == "no_chat_template"


def test_a_beginning_that_the_template_writes_is_not_doubled(stories: Path, tmp_path: Path) -> None:
    tokenizer = loaded(templated(stories, tmp_path, chat_template="{{ bos_token }}{{ messages[0].content }}"))
    assert tokenizer.encode_chat([USER]).count(1) == 1
    assert tokenizer.encode("<s>Hi").count(1) == 2
    assert tokenizer.encode("<s>Hi", False).count(1) == 1


def test_a_role_that_the_template_refuses_is_told_in_its_own_words(stories: Path, tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(RequestError, match="System role not supported"):
        loaded(templated(stories, tmp_path, chat_template=refusing)).encode_chat([{"role": "system", "content": "x"}])


def test_tools_go_into_the_template_with_calls_and_their_results(stories: Path, tmp_path: Path) -> None:
    template = (
        "{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls %}({{ call.function.arguments.city }}){% endfor %};{% endfor %}"
    )
    tokenizer = loaded(templated(stories, tmp_path, chat_template=template))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "sun"}]
    assert said(tokenizer, *turns, tools=(TOOL,)).strip("<s> ") == "[weather]Hi;(Rome);sun;"


def test_tools_that_the_template_would_ignore_are_refused(qwen2: Path) -> None:
    with pytest.raises(RequestError, match="no place for tools") as refused:
        loaded(qwen2).encode_chat([USER], ChatOptions(tools=(TOOL,)))
    assert (refused.value.code, refused.value.param) == ("tools_not_supported", "tools")


def test_variables_of_the_template_are_passed_and_what_transformers_would_take_is_refused(
    stories: Path, tmp_path: Path
) -> None:
    tokenizer = loaded(templated(stories, tmp_path, chat_template="{{ 'deep' if enable_thinking else 'quick' }}"))
    assert said(tokenizer, template_kwargs={"enable_thinking": True}).strip() == "deep"
    assert said(tokenizer).strip() == "quick"
    with pytest.raises(RequestError, match="'truncation' is no variable of a template"):
        tokenizer.encode_chat([USER], ChatOptions(template_kwargs={"truncation": True}))


def test_the_end_of_a_conversation_is_as_transformers_makes_it(qwen2: Path) -> None:
    ours, theirs = loaded(qwen2), AutoTokenizer.from_pretrained(qwen2)
    turns = [USER, {"role": "assistant", "content": "Well,"}]
    for flags in ({"add_generation_prompt": False}, {"add_generation_prompt": False, "continue_final_message": True}):
        expected = theirs.apply_chat_template(turns, **flags)["input_ids"]
        assert ours.encode_chat(turns, ChatOptions(**flags)) == expected


def test_a_template_file_with_a_mistake_is_refused_with_its_line(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("fine\n{% for %}")
    with pytest.raises(OptionError, match=r"bad\.jinja, line 2"):
        load_tokenizer(stories, tmp_path / "bad.jinja")
