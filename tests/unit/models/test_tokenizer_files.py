"""Tokenizers from whatever files a checkpoint has them in, and the reason where they cannot be had."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer

from headrace.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError
from headrace.models.tokenizer import Tokenizer, load_tokenizer
from headrace.sampling.detokenizer import IncrementalDetokenizer

TEXT = "Once upon a time, there was 1 naïve girl; 中文 🙂\n\tThe end."


def loaded(path: Path) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def configured(folder: Path, model_type: str, **tokenizer_config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if tokenizer_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def streamed(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, only_appends=tokenizer.only_appends)
    return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])


@pytest.fixture(scope="module")
def spm(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small model of SentencePiece, as Llama's are."""
    prefix = tmp_path_factory.mktemp("spm") / "small"
    SentencePieceTrainer.train(
        input=str(shared_data / "text" / "tinystories-val" / "tinystories_val.txt"),
        input_sentence_size=1000,
        model_prefix=str(prefix),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "opt", "mistral-v0.1", "qwen2"])
def test_a_tokenizer_json_gives_the_tokens_and_the_text_that_it_says(shared_data: Path, name: str) -> None:
    folder = shared_data / "tokenizers" / name
    ours, theirs = loaded(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for special in (True, False):
        assert ours.encode(TEXT, special) == theirs.encode(TEXT, add_special_tokens=special).ids
    assert streamed(ours, ours.encode(TEXT)) == theirs.decode(ours.encode(TEXT))


@pytest.mark.parametrize(
    ("name", "model_type"), [("gpt2", "gpt2"), ("opt", "opt"), pytest.param("qwen2", "qwen2", marks=pytest.mark.slow)]
)
def test_vocabulary_and_merges_alone_are_a_tokenizer(
    shared_data: Path, tmp_path: Path, name: str, model_type: str
) -> None:
    whole = json.loads((shared_data / "tokenizers" / name / "tokenizer.json").read_text())
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"])
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    ours = loaded(configured(tmp_path, model_type))
    expected = tokenizers.Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))
    ids = expected.encode(TEXT, add_special_tokens=False).ids
    assert ours.encode(TEXT, False) == ids
    assert streamed(ours, ids) == TEXT
    assert ours.encode(TEXT) == AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": ""},
        {"tokenizer_class": "LlamaTokenizerFast", "bos_token": {"__type": "AddedToken", "content": "<s>"}},
        {"tokenizer_class": "PreTrainedTokenizerFast", "legacy": False, "add_bos_token": True},
    ],
)
def test_a_sentencepiece_model_alone_is_a_tokenizer(spm: bytes, tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm)
    ours, theirs = loaded(configured(tmp_path, "llama", **config)), SentencePieceProcessor(model_proto=spm)
    ids = theirs.encode(TEXT)
    assert ours.encode(TEXT) == [1, *ids]
    assert ours.encode(TEXT, False) == ids
    assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids) == TEXT
    assert (ours.eos_token_ids, ours.pad_token_id) == ((2,), None)


def test_a_sentencepiece_model_has_the_ends_and_tokens_that_its_configuration_adds(spm: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm)
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 500}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    ours = loaded(
        configured(
            tmp_path,
            "llama",
            add_bos_token=False,
            add_eos_token=True,
            added_tokens_decoder={"500": {"content": "<|im_end|>", "special": True}},
        )
    )
    ids = SentencePieceProcessor(model_proto=spm).encode("a girl")
    assert ours.encode("a girl") == [*ids, 2]
    assert ours.encode_chat([{"role": "user", "content": "a girl"}]) == [*ids, 500]


def test_a_python_tokenizer_gives_transformers_tokens_and_text_that_comes_in_pieces(tmp_path: Path) -> None:
    words = ["<unk>", "he@@", "llo", "hello", "w@@", "o@@", "rld", "."]
    letters = sorted(set("helowrd.") | {f"{letter}@@" for letter in "helowrd."} - {"w@@", "o@@"})
    vocabulary = list(dict.fromkeys([*words, *letters]))
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e 10\nl l 9\nll o</w> 8\nr l 7\nrl d</w> 6\n")
    ours = loaded(configured(tmp_path, "ctrl", tokenizer_class="CTRLTokenizer"))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert not theirs.is_fast
    ids = ours.encode("hello world . hello")
    assert ids == theirs("hello world . hello")["input_ids"]
    for cut in range(len(ids)):
        assert streamed(ours, ids[:cut]) == theirs.decode(ids[:cut], clean_up_tokenization_spaces=False)
    assert streamed(ours, ids) == "hello world . hello"


def test_a_sentencepiece_class_of_its_own_keeps_its_rules(spm: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spm)
    ours = loaded(configured(tmp_path, "gpt-sw3", tokenizer_class="GPTSw3Tokenizer"))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "Once\u00a0upon a time."  # it takes such spaces for plain ones
    assert (
        ours.encode(text)
        == theirs(text)["input_ids"]
        == SentencePieceProcessor(model_proto=spm).encode("Onceupon a time.")
    )
    assert streamed(ours, ours.encode(TEXT)) == theirs.decode(ours.encode(TEXT))


def test_without_the_packages_that_a_class_needs_the_error_says_what_to_install(
    spm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spiece.model").write_bytes(spm)
    configured(tmp_path, "gpt-sw3", tokenizer_class="GPTSw3Tokenizer")
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "sentencepiece" else found(name, package)

    monkeypatch.setattr("headrace.models.tokenizer_files.find_spec", find)
    with pytest.raises(CheckpointError, match=re.escape('pip install "headrace[sentencepiece]"')):
        load_tokenizer(tmp_path)


def test_another_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match="sacremoses"):
        load_tokenizer(configured(tmp_path, "biogpt", tokenizer_class="BioGptTokenizer"))


def test_code_of_the_checkpoint_is_not_run(spm: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm)
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit")
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    with pytest.raises(UnsupportedCheckpointError, match="its own code, which runs only with --trust-remote-code"):
        load_tokenizer(configured(tmp_path, "llama", tokenizer_class="OwnTokenizer", auto_map=auto_map))


def test_a_configuration_without_a_vocabulary_is_no_tokenizer(tmp_path: Path) -> None:
    configured(tmp_path, "llama", tokenizer_class="LlamaTokenizer")
    with pytest.raises(CorruptCheckpointError, match=r"without the tokenizer's vocabulary; expected tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_needs_no_vocabulary_is_one(tmp_path: Path) -> None:
    ours = loaded(configured(tmp_path, "llama", tokenizer_class="ByT5Tokenizer"))
    assert ours.encode("a", False) == [100]


def test_a_tiktoken_vocabulary_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"aGVsbG8= 0\n")
    with pytest.raises(UnsupportedCheckpointError, match="does not say how it cuts text"):
        load_tokenizer(configured(tmp_path, "llama"))
