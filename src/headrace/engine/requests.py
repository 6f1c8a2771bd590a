"""What a caller asks of the engine: one prompt as tokens, and how to sample. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.sampling.parameters import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        request_id: the caller's number for it, unique among the requests that run together. Where `params` has no
            seed, the request's own is derived from the engine's seed and this number.
        prompt: the text that the tokens came from, where there is one; the engine reads the tokens only.
        prompt_token_ids: the prompt as the model reads it, special tokens included; at least one.
        params: how its tokens are drawn.
    """

    request_id: int
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
