from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from headrace.sampling.detokenizer import IncrementalDetokenizer

TEXTS = [
    "Hello, world!  two  spaces\n\n\tTab. don't 's",
    "你好，世界！今天天气很好。我们去吃北京烤鸭吧。",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪",
    "བོད་སྐད ᚠᛇᚻ ๓ภาษาไทย עברית العربية",
    "a\u0301 e\u0308 Å 𝔘𝔫𝔦 \u200b zero",
    "  leading and trailing  ",
    "a genuine \ufffd replacement",
]
NAMES = ["gpt2", "opt", "qwen2", "mistral-v0.1"]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    return load(shared_data, request.param)


def load(shared_data: Path, name: str) -> Tokenizer:
    return Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))


def pieces(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_wherever_the_tokens_start_and_end(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text).ids
    for cut in range(len(token_ids)):
        for part in (token_ids[cut:], token_ids[:cut]):
            assert "".join(pieces(tokenizer, part)) == tokenizer.decode(part)


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_special_tokens_between_words_keep_the_spaces(tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
    special = next(id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    words = tokenizer.encode("one two", add_special_tokens=False).ids
    token_ids = [special, *words, special, special, *words, special]
    expected = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    assert "".join(pieces(tokenizer, token_ids, skip_special_tokens=skip_special_tokens)) == expected


def test_real_text_comes_out_whole(tokenizer: Tokenizer, shared_data: Path) -> None:
    text = (shared_data / "text" / "wikitext-2" / "wiki.test.tokens").read_text(encoding="utf-8")[50_000:70_000]
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("龘😀 ᚠᛇ").ids
    assert not any("\ufffd" in piece for piece in pieces(tokenizer, token_ids))


def test_a_character_is_given_with_its_last_token(shared_data: Path) -> None:
    tokenizer = load(shared_data, "gpt2")
    token_ids = tokenizer.encode("你好世界").ids
    given = pieces(tokenizer, token_ids)
    assert len(token_ids) > 4
    assert [piece for piece in given if piece] == ["你", "好", "世", "界"]
    assert given[-1] == ""


def test_broken_bytes_come_at_the_end(shared_data: Path) -> None:
    tokenizer = load(shared_data, "gpt2")
    token_ids = tokenizer.encode("好").ids[:1]
    assert pieces(tokenizer, token_ids) == ["", "\ufffd"]


def test_byte_fallback_takes_back_a_run_of_bytes_only_while_it_is_held_back(shared_data: Path) -> None:
    tokenizer = load(shared_data, "mistral-v0.1")
    newline, *run = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in b"\n" + "ᚠ".encode() + b"\xe1")
    assert "".join(pieces(tokenizer, run)) == tokenizer.decode(run) == "\ufffd" * 4
    assert pieces(tokenizer, [newline]) == ["\n", ""]  # at once: it may be a stop string
    assert "".join(pieces(tokenizer, [newline, *run])) == "\n" + "\ufffd" * 4  # where decode gives five of them


class CountingDecoder:
    """Joins letters; counts the tokens that it decodes."""

    def __init__(self, text_of: dict[int, str]) -> None:
        self.text_of = text_of
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool, /) -> str:
        self.num_decoded += len(token_ids)
        return "".join(self.text_of[token_id] for token_id in token_ids)


@pytest.mark.parametrize("text", ["a", "\ufffd", ""], ids=["text", "broken", "nothing"])
def test_the_cost_of_a_token_does_not_grow_with_the_answer(text: str) -> None:
    decoder = CountingDecoder({0: text})
    detokenizer = IncrementalDetokenizer(decoder)
    given = [detokenizer.push(0) for _ in range(5000)]
    assert decoder.num_decoded <= 6 * 5000
    assert "".join(given) + detokenizer.flush() == text * 5000
