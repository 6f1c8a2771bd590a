"""A checkpoint's tokenizer and chat template, as the engine uses them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

from jinja2 import TemplateError

from headrace.checkpoint.files import TOKENIZER_FILES, check_place, check_size, open_plain, read_json
from headrace.errors import (
    CheckpointError,
    CorruptCheckpointError,
    OptionError,
    RequestError,
    UnsupportedCheckpointError,
    WeightMismatchError,
    one_line,
)
from headrace.models.transformers_api import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TokenizersBackend,
    compile_chat_template,
)

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


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
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        return (self._chat_template or self._tokenizer.chat_template) is not None

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text` with the special tokens that the model expects around a prompt.

        Raises:
            RequestError: it is not text: half of a surrogate pair stands alone.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Returns the tokens of a conversation, ready for the assistant's answer.

        Raises:
            RequestError: there is no chat template, or it refuses these messages.
        """
        if not self.has_chat_template:
            raise RequestError(
                "this model has no chat template; send `prompt` instead of `messages`, or give --chat-template FILE",
                code="no_chat_template",
                param="messages",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise RequestError(
                f"the chat template refuses these messages: {error}", code="invalid_messages", param="messages"
            ) from error
        assert isinstance(text, str), "it was not asked to tokenize"
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
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        raise RequestError(
            "this model has no tokenizer; give the prompt as token ids", code="no_tokenizer", param="prompt"
        )

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
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
    path: Path, chat_template: Path | str | None = None, *, optional: bool = False
) -> Tokenizer | WithoutTokenizer:
    """Reads the tokenizer of the checkpoint at `path`, and a chat template from a file where one is named.

    Raises:
        CheckpointError: there is no tokenizer and it is not `optional`, or it cannot be read.
        OptionError: the template file cannot be read, or is no template.
    """
    present = [path / name for name in TOKENIZER_FILES if os.path.lexists(path / name)]
    for file in present:
        check_place(file, path)
        with open_plain(file) as stream:
            check_size(file, os.fstat(stream.fileno()).st_size)
    if not any(file.name in _FILES for file in present):
        if optional:
            return WithoutTokenizer()
        raise CheckpointError(f"{path}: no tokenizer; expected one of {', '.join(_FILES)}; add it to the folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every tokenizer class fails in its own way
        raise _explain(path, present, error) from error
    template = read_chat_template(chat_template)
    if template is None:
        _check_own_template(path, present, tokenizer)
    return Tokenizer(tokenizer, template)


def check_vocabulary(path: Path, tokenizer: Tokenizer | WithoutTokenizer, vocab_size: int) -> None:
    """Raises WeightMismatchError where text would become tokens that a model of `vocab_size` has no embedding for."""
    if tokenizer.num_words > vocab_size:
        names = ", ".join(name for name in _FILES if (path / name).exists())
        raise WeightMismatchError(
            f"{path}: the tokenizer ({names}) has {tokenizer.num_words} words, the model {vocab_size}; "
            "expected no more than the model; use the tokenizer of this model"
        )


def read_chat_template(file: Path | str | None) -> str | None:
    """Returns the content of a template file, where one is named.

    Raises:
        OptionError: it cannot be read, or is no Jinja template.
    """
    if file is None:
        return None
    try:
        template = Path(file).read_text(encoding="utf-8")
        compile_chat_template(template)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise OptionError(
            f"chat template {file} cannot be read: {one_line(error)}; expected a Jinja template in UTF-8"
        ) from error
    return template


def _explain(path: Path, present: Sequence[Path], error: Exception) -> CheckpointError:
    """Names the file that a tokenizer could not be read from, where it can be found out."""
    for file in present:
        try:
            if file.suffix == ".json":
                values = read_json(file)
                if file.name == "tokenizer_config.json" and values.get("auto_map"):
                    return UnsupportedCheckpointError(
                        f"{file}: the tokenizer brings its own code, which Headrace never runs; expected one that "
                        "transformers has built in; choose another model, or add a tokenizer.json"
                    )
            elif file.suffix != ".model":
                file.read_text(encoding="utf-8")
        except CheckpointError as damage:
            return damage
        except (OSError, UnicodeDecodeError) as damage:
            return CorruptCheckpointError(f"{file}: not a text in UTF-8 ({damage}); download or copy the file again")
    names = ", ".join(file.name for file in present)
    return CorruptCheckpointError(
        f"{path}: the tokenizer cannot be read from {names}: {type(error).__name__}: {one_line(error)}; "
        "download or copy these files again"
    )


def _check_own_template(path: Path, present: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises CorruptCheckpointError where the checkpoint's own chat template is no Jinja template."""
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates or ""]:
        try:
            compile_chat_template(template)
        except TemplateError as error:
            names = [file.name for file in present if file.name.startswith("chat_template")]
            raise CorruptCheckpointError(
                f"{path / (names or ['tokenizer_config.json'])[0]}: the chat template is no Jinja template: "
                f"{one_line(error)}; download the file again, or give --chat-template FILE"
            ) from error
