"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
# With more undecided tokens than any character has, decode again only when a token is text by itself.
_MANY_UNDECIDED = 32


class TokenDecoder(Protocol):
    """What turns tokens into text: a tokenizer of `tokenizers`, of transformers, or ours."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool, /) -> str: ...


class IncrementalDetokenizer:
    """Gives the text of each token as soon as it is final; all pieces together are the text of all tokens.

    What a token adds depends on its neighbours: a character may be spread over tokens, a leading space is only dropped
    at the start. So each push decodes a short window: tokens whose text was given, for context, and those undecided.

    ```
    token_ids   0 ......... context ......... undecided ......... end
                 forgotten   |  text was given  |  text is held back  |
    ```

    One that does not (a slow tokenizer that marks where a word goes on) is asked what one more token would change, and
    that stays undecided. Two are not asked, and get pieces of the right length: one that cleans up spaces
    (`clean_up_tokenization_spaces`), and one with byte fallback when an ASCII byte (a newline) is followed by bytes
    that are no character: it takes the newline back, which was given at once, as it may be a stop string.
    """

    def __init__(self, decoder: TokenDecoder, *, skip_special_tokens: bool = True, only_appends: bool = True) -> None:
        self._decoder = decoder
        self._skip_special_tokens = skip_special_tokens
        self._only_appends = only_appends
        self._context: list[int] = []
        self._undecided: list[int] = []
        self._context_text = ""
        self._broken: int | None = None  # the first undecided token with which the text ended in half a character

    def push(self, token_id: int) -> str:
        """Takes the next token and returns the text that is now final; often one token's, sometimes none."""
        self._undecided.append(token_id)
        if len(self._undecided) > _MANY_UNDECIDED and not self._is_text(self._decode([token_id])):
            return ""
        window = self._context + self._undecided
        text = self._decode(window)
        if len(text) <= len(self._context_text):
            return ""
        if text.endswith(_REPLACEMENT):
            self._broken = token_id if self._broken is None else self._broken
            return ""
        # Decoders with byte fallback take back a whole run of bytes when one more byte makes it invalid.
        if self._broken is not None and not self._decode([*window, self._broken]).startswith(text):
            return ""
        if not self._only_appends and not self._decode([*window, token_id]).startswith(text):
            return ""
        piece = text[len(self._context_text) :]
        self._context, self._undecided, self._broken = self._undecided, [], None
        self._context_text = self._decode(self._context)
        return piece

    def flush(self) -> str:
        """Returns the text that was held back; nothing may be pushed after it."""
        return self._decode(self._context + self._undecided)[len(self._context_text) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids, self._skip_special_tokens)

    @staticmethod
    def _is_text(text: str) -> bool:
        return bool(text) and _REPLACEMENT not in text
