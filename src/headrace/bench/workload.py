"""Rows to measure with: prompts of random tokens, answers of a fixed length."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.engine.requests import GenerationRequest
from headrace.errors import OptionError
from headrace.sampling.parameters import SamplingParams

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Rows that are given to the model all at once.

    Attributes:
        max_tokens: of every answer, no more and no fewer: end tokens end nothing.
        seed: of the prompts.
    """

    prompt_tokens: int
    max_tokens: int
    num_rows: int
    seed: int = 0

    @property
    def row_tokens(self) -> int:
        """Tokens of a row at its end."""
        return self.prompt_tokens + self.max_tokens

    def requests(self, run: int, token_ids: TokenIds) -> list[GenerationRequest]:
        """Returns the requests of a run: prompts of `token_ids`, other ones in every run, so that no KV is there yet.

        Answers are greedy and unchanged by what the model's own `generation_config.json` says.
        """
        generator = np.random.default_rng((self.seed % 2**64, run))
        prompts = generator.choice(token_ids, size=(self.num_rows, self.prompt_tokens))
        params = SamplingParams(max_tokens=self.max_tokens, temperature=0, repetition_penalty=1.0, ignore_eos=True)
        return [
            GenerationRequest(request_id=row, prompt_token_ids=tuple(prompt), params=params)
            for row, prompt in enumerate(prompts.tolist())
        ]

    def check_room(self, context_tokens: int) -> None:
        """Raises OptionError where the rows do not fit a context of so many tokens."""
        if self.row_tokens > context_tokens:
            raise OptionError(
                f"--prompt-tokens {self.prompt_tokens} and --max-tokens {self.max_tokens} need a context of "
                f"{self.row_tokens} tokens; it holds {context_tokens} here; ask for fewer"
            )


def ordinary_token_ids(*, vocab_size: int, num_words: int, special: Collection[int]) -> TokenIds:
    """Returns the tokens that prompts are drawn from: words of the tokenizer that the model knows, and nothing special.

    Args:
        vocab_size: of the model.
        num_words: of the tokenizer, without what was added to it; 0 where there is none.

    Raises:
        OptionError: none is left.
    """
    ids = np.setdiff1d(np.arange(min(vocab_size, num_words or vocab_size)), np.fromiter(special, dtype=np.int64))
    if not len(ids):
        raise OptionError("the model's vocabulary has special tokens only; there is nothing to make prompts of")
    return ids
