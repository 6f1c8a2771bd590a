"""The tokenizer of a checkpoint's folder, whichever files it is in; code that comes with it runs only where trusted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer, processors

from headrace.checkpoint.files import TOKENIZER_FILES, check_place, check_size, open_plain, read_json
from headrace.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError, one_line
from headrace.models.sentencepiece_model import convert_sentencepiece, read_sentencepiece
from headrace.models.transformers_api import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    compile_chat_template,
)

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_CONFIG = "tokenizer_config.json"
# Their `tokenizer.model` is SentencePiece's and nothing else; other classes have rules of their own.
_PLAIN_SENTENCEPIECE = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer", "")
_BESIDE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates")


def read_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of the checkpoint at `path`; None where there is none.

    Args:
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: it cannot be read, or not without a package that is not installed.
    """
    files = _checked_files(path)
    present = vocabulary_files(path)
    if not present and path / _CONFIG not in files:
        return None
    config = _read_config(path / _CONFIG)
    try:
        if "tokenizer.json" not in present and "tokenizer.model" in present and _is_plain(config):
            return _converted(path, config)
        if "tokenizer.json" not in present:
            _require_sentencepiece(path, present)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(
            f"{path}: the tokenizer needs a package that is not installed: {one_line(error)}; install it, or add a "
            "tokenizer.json, which needs none"
        ) from error
    except Exception as error:  # every tokenizer class fails in its own way
        raise _explain(path, files, error) from error
    own = [*tokenizer.vocab_files_names.values()]
    if own and not any((path / name).exists() for name in (*_VOCABULARIES, *own)):
        raise CorruptCheckpointError(
            f"{path}: {_CONFIG} without the tokenizer's vocabulary; expected {' or '.join(sorted(own))}; download it"
        )
    return _with_legacy_template(tokenizer, path / "chat_template.json")


def vocabulary_files(path: Path) -> list[str]:
    """Returns the names of the files in `path` that hold words."""
    return [name for name in _VOCABULARIES if (path / name).exists()]


def check_own_template(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises CorruptCheckpointError where the checkpoint's own chat template is no Jinja template."""
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates or ""]:
        try:
            compile_chat_template(template)
        except TemplateError as error:
            names = [name for name in ("chat_template.jinja", "chat_template.json", _CONFIG) if (path / name).exists()]
            raise CorruptCheckpointError(
                f"{path / names[0]}: the chat template is no Jinja template: {one_line(error)}; "
                "download the file again, or give --chat-template FILE"
            ) from error


def missing_tokenizer(path: Path) -> CheckpointError:
    """Returns the error of a folder without a tokenizer."""
    return CheckpointError(f"{path}: no tokenizer; expected one of {', '.join(_VOCABULARIES)}; add it to the folder")


def _checked_files(path: Path) -> list[Path]:
    """Returns what a tokenizer may be made of: plain files of a bounded size, in the folder."""
    files = [path / name for name in TOKENIZER_FILES if os.path.lexists(path / name)]
    for file in files:
        check_place(file, path)
        with open_plain(file) as stream:
            check_size(file, os.fstat(stream.fileno()).st_size)
    return files


def _explain(path: Path, files: Sequence[Path], error: Exception) -> CheckpointError:
    """Names the file that a tokenizer could not be read from, where it can be found out."""
    for file in files:
        try:
            if file.suffix == ".json":
                values = read_json(file)
                if file.name == _CONFIG and values.get("auto_map"):
                    return UnsupportedCheckpointError(
                        f"{file}: the tokenizer brings its own code, which runs only with --trust-remote-code; read "
                        "that code first, or add a tokenizer.json"
                    )
            elif file.suffix != ".model":
                file.read_text(encoding="utf-8")
        except CheckpointError as damage:
            return damage
        except (OSError, UnicodeDecodeError) as damage:
            return CorruptCheckpointError(f"{file}: not a text in UTF-8 ({damage}); download or copy the file again")
    names = ", ".join(file.name for file in files)
    return CorruptCheckpointError(
        f"{path}: the tokenizer cannot be read from {names}: {type(error).__name__}: {one_line(error)}; "
        "download or copy these files again"
    )


def _is_plain(config: dict[str, Any]) -> bool:
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    return name in _PLAIN_SENTENCEPIECE and "AutoTokenizer" not in (config.get("auto_map") or {})


def _converted(path: Path, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Reads `tokenizer.model` as if the folder had the tokenizer.json that it can be converted to."""
    model = read_sentencepiece(path / "tokenizer.model")
    if config.get("add_prefix_space") is False:
        model = model.without_prefix()
    named = {"bos_token": model.bos_id, "eos_token": model.eos_id, "unk_token": model.unk_id, "pad_token": model.pad_id}
    for name, token_id in named.items():
        if not config.get(name) and (piece := model.piece(token_id)) is not None:
            config[name] = piece
    tokenizer = convert_sentencepiece(model, prefix_each_part=bool(config.get("legacy", True)))
    _add_ends(tokenizer, config)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    with TemporaryDirectory(prefix="headrace-tokenizer-") as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        Path(folder, _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        for source in (path / name for name in _BESIDE):
            if source.is_dir():
                shutil.copytree(source, Path(folder, source.name))
            elif source.exists():
                shutil.copy(source, folder)
        converted: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return converted


def _add_ends(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """A prompt begins with `bos_token` unless `config` says otherwise, and ends with `eos_token` if it says so."""
    bos = _content(config.get("bos_token")) if config.get("add_bos_token", True) else None
    eos = _content(config.get("eos_token")) if config.get("add_eos_token") else None
    ends = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    ends = [(token, token_id) for token, token_id in ends if token_id is not None]
    if ends:
        known = [token for token, _ in ends]
        single = [*([bos] if bos in known else []), "$A", *([eos] if eos in known else [])]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _require_sentencepiece(path: Path, present: list[str]) -> None:
    files = [name for name in present if name.endswith(".model")]
    missing = [name for name in ("sentencepiece", "google.protobuf") if files and not _is_installed(name)]
    if missing:
        raise CheckpointError(
            f'{path}: {files[0]} needs packages that are not installed; pip install "headrace[sentencepiece]", or add '
            "a tokenizer.json, which needs none"
        )


def _is_installed(name: str) -> bool:
    package, _, inner = name.partition(".")
    return find_spec(package) is not None and (not inner or find_spec(name) is not None)


def _with_legacy_template(tokenizer: PreTrainedTokenizerBase, file: Path) -> PreTrainedTokenizerBase:
    """Models that see used to have their template in a file that transformers reads with their processor only."""
    if tokenizer.chat_template is None and file.exists():
        tokenizer.chat_template = _read_config(file).get("chat_template")
    return tokenizer


def _read_config(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}
