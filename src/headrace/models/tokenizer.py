"""A checkpoint's tokenizer and chat template, as the engine uses them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from inspect import signature
from pathlib import Path

from jinja2 import TemplateSyntaxError

from headrace.errors import OptionError, RequestError, WeightMismatchError
from headrace.models.chat import ChatMessage, ChatOptions
from headrace.models.tokenizer_files import check_own_template, missing_tokenizer, read_tokenizer, vocabulary_files
from headrace.models.transformers_api import PreTrainedTokenizerBase, TokenizersBackend, compile_chat_template


class Tokenizer:
    """Text to tokens and back; `chat_template`, where given, replaces the checkpoint's own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end token; a model may have more (`generation_config.json`)."""
        eos = self._tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills rows up; None where there is none or it has another meaning as well."""
        tokenizer = self._tokenizer
        shared = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
        return None if tokenizer.pad_token_id is None or tokenizer.pad_token_id in shared else tokenizer.pad_token_id

    @property
    def num_words(self) -> int:
        """The size of the vocabulary without the tokens that were added to it, of which a model may lack some."""
        return self._tokenizer.vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that stand for no text of their own: beginnings, ends, turns, padding, the unknown."""
        added = self._tokenizer.added_tokens_decoder
        return frozenset(self._tokenizer.all_special_ids) | {id_ for id_, token in added.items() if token.special}

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        return (self._chat_template or self._tokenizer.chat_template) is not None

    @property
    def only_appends(self) -> bool:
        """Whether the text of some tokens begins the text of these and more; slow tokenizers join words later."""
        return isinstance(self._tokenizer, TokenizersBackend)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the tokens of `text`, by default with the special tokens that the model expects around a prompt.

        Raises:
            RequestError: it is not text: half of a surrogate pair stands alone.
        """
        return self._encode(text, add_special_tokens=add_special_tokens)

    def encode_chat(self, messages: Sequence[ChatMessage], options: ChatOptions | None = None) -> list[int]:
        """Returns the tokens of a conversation, ready for the assistant's answer unless `options` say otherwise.

        Special tokens are those that the template writes; none is added.

        Raises:
            RequestError: there is no chat template, it refuses these messages, or it has no place for tools.
        """
        if not self.has_chat_template:
            raise RequestError(
                "this model has no chat template; send `prompt` instead of `messages`, or give --chat-template FILE",
                code="no_chat_template",
                param="messages",
            )
        options = options or ChatOptions()
        self._check(options)
        text = self._render(messages, options)
        if options.tools and text == self._render_without_tools(messages, options):
            raise RequestError(
                "this model's chat template has no place for tools; leave `tools` out, or give a template that has one "
                "with --chat-template FILE",
                code="tools_not_supported",
                param="tools",
            )
        return self._encode(text, add_special_tokens=False)

    def word_forms(self, word: str) -> list[list[int]]:
        """Returns the tokens of a word at the beginning of a text and inside of it, where they differ."""
        forms = [self._encode(text, add_special_tokens=False) for text in (word.lstrip(), f" {word.lstrip()}")]
        return [form for index, form in enumerate(forms) if form and form not in forms[:index]]

    def definition(self, end_mark: str) -> tuple[str, int]:
        """Returns the tokenizer as a tokenizer.json, with `end_mark` as one more special token, and that token's id.

        Raises:
            RequestError: it is none of `tokenizers`.
        """
        if not isinstance(self._tokenizer, TokenizersBackend):
            raise RequestError(
                f"{type(self._tokenizer).__name__} cannot be written as tokenizer.json, as structured outputs need",
                code="unsupported_tokenizer",
                param="structured_outputs",
            )
        own = copy(self._tokenizer.backend_tokenizer)
        own.no_padding()
        own.no_truncation()
        own.add_special_tokens([end_mark])
        end_id = own.token_to_id(end_mark)
        assert end_id is not None, "it has just been added"
        return own.to_str(), end_id

    def _check(self, options: ChatOptions) -> None:
        """Raises RequestError for what transformers would take for itself, or would not know which template to use."""
        names = self._tokenizer.chat_template if self._chat_template is None else None
        if isinstance(names, dict) and "default" not in names and not (options.tools and "tool_use" in names):
            raise RequestError(
                f"this model has chat templates for several uses; give --chat-template {' or '.join(sorted(names))}",
                code="no_chat_template",
                param="messages",
            )
        taken = {*signature(self._tokenizer.apply_chat_template).parameters} - {"documents"}
        for name in options.template_kwargs:
            if name in taken:
                raise RequestError(
                    f"chat_template_kwargs: {name!r} is no variable of a template; leave it out",
                    code="invalid_value",
                    param="chat_template_kwargs",
                )

    def _render(self, messages: Sequence[ChatMessage], options: ChatOptions) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in options.tools] or None,
                chat_template=self._chat_template,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                tokenize=False,
                **options.template_kwargs,
            )
        # A template is a program: whatever stops it is about what it was given.
        except Exception as error:
            raise RequestError(
                f"the chat template refuses these messages: {error}", code="invalid_messages", param="messages"
            ) from error
        assert isinstance(text, str), "it was not asked to tokenize"
        return text

    def _render_without_tools(self, messages: Sequence[ChatMessage], options: ChatOptions) -> str | None:
        """None where the template needs them."""
        try:
            return self._render(messages, replace(options, tools=()))
        except RequestError:
            return None

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"not text: half of a surrogate pair stands alone, at character {error.start}", code="invalid_value"
            ) from None
        # Not verbose: what is too long for the model is told by the engine, with what to do.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`."""
        if isinstance(self._tokenizer, TokenizersBackend):  # called for every token: without the wrapper's detours
            fast: str = self._tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
            return fast
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class WithoutTokenizer:
    """In the place of a tokenizer where there is none: prompts are token ids, and answers have no text."""

    num_words = 0
    special_token_ids: frozenset[int] = frozenset()
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    has_chat_template = False
    only_appends = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise RequestError(
            "this model has no tokenizer; give the prompt as token ids", code="no_tokenizer", param="prompt"
        )

    def encode_chat(self, messages: Sequence[ChatMessage], options: ChatOptions | None = None) -> list[int]:
        raise RequestError(
            "this model has no tokenizer; give `prompt` as token ids", code="no_tokenizer", param="messages"
        )

    def word_forms(self, word: str) -> list[list[int]]:
        raise RequestError(
            "this model has no tokenizer; give bad words as token ids", code="no_tokenizer", param="bad_words"
        )

    def definition(self, end_mark: str) -> tuple[str, int]:
        raise RequestError(
            "this model has no tokenizer, which structured outputs need; leave them out",
            code="no_tokenizer",
            param="structured_outputs",
        )

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def load_tokenizer(
    path: Path, chat_template: Path | str | None = None, *, optional: bool = False, trust_remote_code: bool = False
) -> Tokenizer | WithoutTokenizer:
    """Reads the tokenizer of the checkpoint at `path`, and a chat template from a file where one is named.

    Raises:
        CheckpointError: there is no tokenizer and it is not `optional`, or it cannot be read.
        OptionError: the template file cannot be read, or is no template.
    """
    tokenizer = read_tokenizer(path, trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        if chat_template is None:
            check_own_template(path, tokenizer)
        return with_template(tokenizer, chat_template)
    if optional:
        return WithoutTokenizer()
    raise missing_tokenizer(path)


def check_vocabulary(path: Path, tokenizer: Tokenizer | WithoutTokenizer, vocab_size: int) -> None:
    """Raises WeightMismatchError where text would become tokens that a model of `vocab_size` has no embedding for."""
    if tokenizer.num_words > vocab_size:
        raise WeightMismatchError(
            f"{path}: the tokenizer ({', '.join(vocabulary_files(path))}) has {tokenizer.num_words} words, the model "
            f"{vocab_size}; expected no more than the model; use the tokenizer of this model"
        )


def with_template(tokenizer: PreTrainedTokenizerBase, chosen: Path | str | None) -> Tokenizer:
    """Returns `tokenizer` with the chat template that is chosen: a file, or one of several of its own by name.

    Raises:
        OptionError: the file cannot be read, or is no template.
    """
    own = tokenizer.chat_template
    names = sorted(own) if isinstance(own, dict) else []
    if chosen is None:
        return Tokenizer(tokenizer)
    if chosen in names:
        return Tokenizer(tokenizer, own[chosen])
    try:
        template = Path(chosen).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        also = f"; the model's own are named {', '.join(names)}" if names else ""
        raise OptionError(
            f"chat template {chosen} cannot be read: {error}; expected a Jinja template in UTF-8{also}"
        ) from error
    try:
        compile_chat_template(template)
    except TemplateSyntaxError as error:
        raise OptionError(
            f"chat template {chosen}, line {error.lineno}: {error.message}; expected a Jinja template"
        ) from error
    return Tokenizer(tokenizer, template)
