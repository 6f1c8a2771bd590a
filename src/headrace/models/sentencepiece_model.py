"""`tokenizer.model` of SentencePiece as a tokenizer of the `tokenizers` library, piece by piece the same.

What transformers makes of such a file when there is no `tokenizer.json` beside it depends on which class the checkpoint
names, and differs from SentencePiece (5.23: no space before the first word, Unigram models read as BPE). The file is a
protocol buffer, `sentencepiece_model.proto`; of it, what `_fields` yields is all that is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from headrace.errors import UnsupportedCheckpointError

_SPACE = "\u2581"
_NEVER = -1e9
"""Score in a Unigram model of pieces that no text is cut into."""


class PieceKind(IntEnum):
    """What a piece is, by the file's own numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceModel:
    """What the file holds.

    Attributes:
        pieces: text, score and kind of each token.
        algorithm: 1 Unigram, 2 BPE.
        bos_id: -1 where there is none; so `eos_id` and `pad_id`.
        character_map: SentencePiece's normalization rules, compiled; empty: characters stay what they are.
        add_dummy_prefix: a text begins with a space that nobody wrote.
        remove_extra_whitespaces: spaces at the ends go, and of several in a row one stays.
    """

    pieces: tuple[tuple[str, float, PieceKind], ...]
    algorithm: int
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    character_map: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def piece(self, token_id: int) -> str | None:
        """Returns the text of a token; None for -1."""
        return self.pieces[token_id][0] if 0 <= token_id < len(self.pieces) else None

    def without_prefix(self) -> SentencePieceModel:
        """Returns the same where a text begins as it is written."""
        return replace(self, add_dummy_prefix=False)


def read_sentencepiece(file: Path) -> SentencePieceModel:
    """Reads `file`.

    Raises:
        UnsupportedCheckpointError: it is no model of SentencePiece, or one that cannot be run exactly.
    """
    try:
        fields = list(_fields(file.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes))
        trainer, normalizer = ({}, {}) if not pieces else (_message(fields, 2), _message(fields, 3))
    except (ValueError, IndexError, struct.error):  # UnicodeDecodeError is a ValueError
        pieces = ()
    if not pieces:
        raise UnsupportedCheckpointError(
            f"{file}: not a model of SentencePiece (a tiktoken vocabulary does not say how it cuts text); "
            "save the tokenizer with transformers, which writes tokenizer.json, and add that to the folder"
        )
    algorithm = trainer.get(3, 1)
    refused = {
        "words or characters as pieces": algorithm not in (1, 2),
        "spaces at the end of words": trainer.get(24),
        "spaces as they are": not normalizer.get(5, 1),
        "unused pieces": any(kind is PieceKind.UNUSED for _, _, kind in pieces),
    }
    if any(refused.values()):
        what = ", ".join(name for name, is_so in refused.items() if is_so)
        raise UnsupportedCheckpointError(
            f"{file}: this model of SentencePiece has {what}, which is not run exactly; add a tokenizer.json"
        )
    character_map = normalizer.get(2, b"")
    assert isinstance(character_map, bytes) and isinstance(algorithm, int)
    return SentencePieceModel(
        pieces=pieces,
        algorithm=algorithm,
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        pad_id=_signed(trainer.get(43, -1)),
        character_map=character_map,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def convert_sentencepiece(model: SentencePieceModel, *, prefix_each_part: bool) -> Tokenizer:
    """Returns the tokenizer that cuts text as `model` does.

    Args:
        prefix_each_part: each part of a text between special tokens gets the space that begins a text, not only the
            first one; transformers calls it `legacy`.
    """
    own = [AddedToken(text, normalized=True, special=False) for text, _, kind in model.pieces if kind == 4]
    special = [AddedToken(text, normalized=False, special=True) for text, _, kind in model.pieces if kind in (2, 3)]
    by_normalizer = model.add_dummy_prefix and prefix_each_part and not own
    tokenizer = Tokenizer(_unigram(model) if model.algorithm == 1 else _bpe(model))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.character_map)] if model.character_map else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(_SPACE)] if by_normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    if model.add_dummy_prefix and not by_normalizer:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    decoding: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        decoding.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(decoding)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(own)
    return tokenizer


def _bpe(model: SentencePieceModel) -> BPE:
    """Merges are not in the file: each piece is merged from any two that make it, in the order of scores."""
    vocab = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    normal = {text for text, _, kind in model.pieces if kind is PieceKind.NORMAL}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, score, kind in model.pieces:
        if kind is PieceKind.NORMAL:
            halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            merges += [(-score, vocab[a], vocab[b], (a, b)) for a, b in halves if a in normal and b in normal]
    merges.sort()
    return BPE(
        vocab=vocab,
        merges=[pair for *_, pair in merges],
        unk_token=model.piece(model.unk_id),
        fuse_unk=True,
        byte_fallback=_has_bytes(model),
    )


def _unigram(model: SentencePieceModel) -> Unigram:
    scores = [(text, score if kind is PieceKind.NORMAL else _NEVER) for text, score, kind in model.pieces]
    return Unigram(scores, unk_id=model.unk_id, byte_fallback=_has_bytes(model))


def _has_bytes(model: SentencePieceModel) -> bool:
    return any(kind is PieceKind.BYTE for _, _, kind in model.pieces)


def _piece(data: bytes) -> tuple[str, float, PieceKind]:
    values = dict(_fields(data))
    text, score, kind = values[1], values.get(2, b"\0\0\0\0"), values.get(3, 1)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError("a piece has fields of other types")
    return text.decode(), struct.unpack("<f", score)[0], PieceKind(kind)


def _message(fields: list[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    data = next((value for found, value in fields if found == number), b"")
    return dict(_fields(data)) if isinstance(data, bytes) else {}


def _signed(value: int | bytes) -> int:
    """A negative number is stored as its two's complement in 64 bits."""
    assert isinstance(value, int)
    return value - (1 << 64) if value >> 63 == 1 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a protocol buffer: whole numbers as such, all else as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        match key & 7:
            case 0:
                value, position = _varint(data, position)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, position = _varint(data, position)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"no such kind of field: {kind}")
        if position + size > len(data):
            raise ValueError("the last field is cut off")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
