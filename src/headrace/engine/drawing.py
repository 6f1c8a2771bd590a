"""From the logits of a micro-batch to the tokens that follow each of its rows; guesses are verified on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, islice

from torch import Tensor

from headrace.engine.answer import Answer
from headrace.sampling.sampler import sample
from headrace.sampling.tokens import SampledToken
from headrace.scheduler.sweep import Chunk
from headrace.units import MIB

_SAMPLING_BYTES = 32 * MIB


def draw(
    logits: Tensor, chunks: Sequence[Chunk], answer_of: Callable[[int], Answer]
) -> dict[int, Sequence[SampledToken]]:
    """Returns the tokens that follow each sampling chunk: one, and one more for each guess that was right.

    A token after a guess is drawn as it would be, had the guess been known: so all tokens are those that one sweep
    after another would have drawn, whether greedily or at random.

    Args:
        logits: (R, vocabulary), of the last `num_logits` tokens of each chunk.
        answer_of: the answer that a sequence grows.
    """
    ends = list(accumulate(chunk.num_logits for chunk in chunks))
    for chunk, end in zip(chunks, ends, strict=True):
        if chunk.scores:
            answer_of(chunk.sequence_id).score_prompt(chunk.start, logits[end - chunk.num_logits : end])
    sampling = [(chunk, end) for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
    places = [place for chunk, end in sampling for place in range(end - 1 - chunk.num_guessed, end)]
    rows = [row for chunk, _ in sampling for row in answer_of(chunk.sequence_id).next_rows(chunk.guess)]
    drawn = iter(
        sample(logits if len(places) == len(logits) else logits[places], rows, max_temporary_bytes=_SAMPLING_BYTES)
    )
    return {chunk.sequence_id: _right(chunk.guess, list(islice(drawn, 1 + chunk.num_guessed))) for chunk, _ in sampling}


def _right(guess: Sequence[int], drawn: list[SampledToken]) -> Sequence[SampledToken]:
    """Returns the tokens up to the first that is not the guessed one, that one included."""
    for index, guessed in enumerate(guess):
        if drawn[index].token_id != guessed or not drawn[index].is_finite:
            return drawn[: index + 1]
    return drawn
