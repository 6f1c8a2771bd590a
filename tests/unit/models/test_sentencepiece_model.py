"""`tokenizer.model` becomes a tokenizer that cuts and joins text as SentencePiece's own library does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from headrace.errors import UnsupportedCheckpointError
from headrace.models.sentencepiece_model import convert_sentencepiece, read_sentencepiece

TEXTS = (
    "Once upon a time, there was a girl.",
    "  two  spaces ",
    "naïve — 中文 🙂 e\u0301 ﬁ",
    "line\nbreak\ttab\n\n",
    "12345 don't",
    "",
    " ",
    "\u2581a",
)


Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> str:
    return (shared_data / "text" / "tinystories-val" / "tinystories_val.txt").read_text(encoding="utf-8")[:60_000]


@pytest.fixture(scope="module")
def trained(stories: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains a model of 500 pieces on a few stories; options are those of SentencePiece's trainer."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "stories.txt").write_text(stories, encoding="utf-8")

    def train(name: str, **options: object) -> Path:
        file = folder / f"{name}.model"
        if not file.exists():
            SentencePieceTrainer.train(
                input=str(folder / "stories.txt"),
                model_prefix=str(folder / name),
                **{"vocab_size": 500, "num_threads": 1, "minloglevel": 2, **options},
            )
        return file

    return train


LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
KINDS = {
    "llama": {"model_type": "bpe", **LLAMA},
    "llama_unigram": {"model_type": "unigram", **LLAMA},
    "t5": {"model_type": "unigram"},
    "bpe_without_bytes": {"model_type": "bpe"},
    "gemma": {
        "model_type": "bpe",
        **LLAMA,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<mask>", "\n\n", "\u2581\u2581"],
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_text_is_cut_and_joined_as_by_the_library_itself(trained: Trained, stories: str, name: str) -> None:
    file = trained(name, **KINDS[name])
    theirs = SentencePieceProcessor(model_file=str(file))
    ours = convert_sentencepiece(read_sentencepiece(file), prefix_each_part=True)
    assert ours.get_vocab_size() == theirs.get_piece_size()
    for text in (*TEXTS, stories[:5000]):
        ids = theirs.encode(text)
        assert ours.encode(text).ids == ids, text
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)


def test_symbols_of_the_user_are_whole_and_get_no_space(trained: Trained) -> None:
    file = trained("symbols", model_type="bpe", **LLAMA, user_defined_symbols=["<mask>"])
    theirs = SentencePieceProcessor(model_file=str(file))
    ours = convert_sentencepiece(read_sentencepiece(file), prefix_each_part=True)
    for text in ("a<mask>b", "one <mask> two"):
        assert ours.encode(text).tokens[-3:] == theirs.encode(text, out_type=str)[-3:]


def test_special_tokens_stand_alone_and_the_space_follows_each_or_only_the_first(trained: Trained) -> None:
    model = read_sentencepiece(trained("llama", **KINDS["llama"]))
    for each, after in ((True, "\u2581"), (False, "")):
        tokens = convert_sentencepiece(model, prefix_each_part=each).encode("a</s>b").tokens
        assert (tokens[0], tokens[1]) == ("\u2581a", "</s>")
        assert "".join(tokens[2:]) == f"{after}b"


def test_the_vocabulary_of_llama_cuts_text_as_the_library_does(shared_data: Path, stories: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(llama_model(shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-llama-spm.gguf"))
    theirs = SentencePieceProcessor(model_file=str(file))
    ours = convert_sentencepiece(read_sentencepiece(file), prefix_each_part=True)
    assert theirs.get_piece_size() == 32_000
    for text in (*TEXTS, stories[:5000]):
        assert ours.encode(text).ids == theirs.encode(text)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "not a model"), (b"aGVsbG8= 0\n", "not a model"), (b"\x0a\xff\xff", "not a model")],
    ids=["empty", "tiktoken", "cut off"],
)
def test_another_file_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UnsupportedCheckpointError, match=why):
        read_sentencepiece(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("options", "why"),
    [({"model_type": "char"}, "words or characters"), ({"treat_whitespace_as_suffix": True}, "spaces at the end")],
)
def test_what_cannot_be_cut_exactly_is_refused_with_the_reason(
    trained: Trained, options: dict[str, object], why: str
) -> None:
    file = trained(why.split()[0], **options, **({"vocab_size": 40} if "model_type" in options else {}))
    with pytest.raises(UnsupportedCheckpointError, match=why):
        read_sentencepiece(file)


def llama_model(gguf: Path) -> bytes:
    """Llama's `tokenizer.model`, put together again from the vocabulary that a GGUF file has of it."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    data, found, position = gguf.read_bytes(), {}, 24
    sizes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind: int, position: int) -> tuple[object, int]:
        if kind == 8:
            (length,) = struct.unpack_from("<Q", data, position)
            return data[position + 8 : position + 8 + length], position + 8 + length
        if kind == 9:
            inner, length = struct.unpack_from("<IQ", data, position)
            items, position = [], position + 12
            for _ in range(length):
                item, position = value(inner, position)
                items.append(item)
            return items, position
        (number,) = struct.unpack_from(f"<{sizes[kind]}", data, position)
        return number, position + struct.calcsize(sizes[kind])

    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        name, position = value(8, position)
        (kind,) = struct.unpack_from("<I", data, position)
        found[name], position = value(kind, position + 4)
    model = protocol.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    listed = (found[b"tokenizer.ggml.tokens"], found[b"tokenizer.ggml.scores"], found[b"tokenizer.ggml.token_type"])
    for text, score, kind in zip(*listed, strict=True):
        model.pieces.add(piece=text.decode(), score=score, type=kind)
    return bytes(model.SerializeToString())
