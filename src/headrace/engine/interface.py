"""What jobs, the chat and the server need from a language model. `LLM` is one; `headrace.testing.EchoLLM` another."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from headrace.engine.outputs import OutputPiece, RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.models.chat import ChatMessage, ChatOptions
from headrace.sampling.parameters import GenerationDefaults, SamplingParams


class TextCodec(Protocol):
    """Text to tokens and back, and the model's chat template."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` knows how this model marks the turns of a conversation."""

    def encode(self, text: str, add_special_tokens: bool = True, /) -> list[int]:
        """Returns the tokens of `text` as the model expects a prompt, by default special tokens included."""

    def encode_chat(self, messages: list[ChatMessage], options: ChatOptions | None = None, /) -> list[int]:
        """Returns the tokens of a conversation up to where the answer begins.

        Raises:
            RequestError: the template refuses these messages, has no place for tools, or there is none.
        """

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool, /) -> str:
        """Returns the text of `token_ids`; incomplete characters become U+FFFD."""


class LanguageModel(Protocol):
    """A loaded model that answers requests."""

    @property
    def tokenizer(self) -> TextCodec:
        """The model's own."""

    @property
    def model_name(self) -> str:
        """What the answers call the model."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together that the model can hold."""

    @property
    def defaults(self) -> GenerationDefaults:
        """What the model says about sampling."""

    @property
    def description(self) -> str:
        """One line: what was resolved (device, dtype, memory)."""

    def run(self, requests: Iterable[GenerationRequest], /) -> Generator[RequestOutput, None, None]:
        """Yields each request's output when it is finished, in that order; pulls requests as it has room for them.

        A request that cannot be served yields an output with an error; the others go on. Closing the iterator
        cancels what is unfinished.
        """

    def stream(self, prompt: str, params: SamplingParams, /) -> Generator[OutputPiece, None, None]:
        """Yields the answer to one prompt as it comes; closing the iterator cancels it.

        Raises:
            RequestError: the prompt cannot be served.
        """

    def stream_chat(self, messages: list[ChatMessage], params: SamplingParams, /) -> Generator[OutputPiece, None, None]:
        """Yields the answer to a conversation as it comes; otherwise as `stream`."""
