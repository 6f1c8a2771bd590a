"""What a request changes in the model's logits before a token is drawn: biases, penalties, words it does not want,
functions of its own, and the form of the answer.

In the order of transformers' and vLLM's processors. Every row is changed by its own parameters and tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headrace.errors import RequestError
from headrace.sampling.guidance import Guide
from headrace.sampling.parameters import ResolvedSampling

if TYPE_CHECKING:
    from headrace.sampling.parameters import LogitsProcessor


def adjust(logits: Tensor, sampling: ResolvedSampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
    """Changes one row of float32 logits (V,) in place.

    Raises:
        RequestError: a function of the request's own failed.
    """
    if sampling.logit_bias:
        _add_bias(logits, sampling.logit_bias)
    if sampling.repetition_penalty != 1.0:
        _penalize_repetition(logits, sampling.repetition_penalty, [*prompt_ids, *output_ids])
    if output_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        _penalize_presence(logits, sampling.presence_penalty, sampling.frequency_penalty, output_ids)
    for word in sampling.bad_words:
        _rule_out(logits, word, output_ids)
    for processor in sampling.logits_processors:
        _process(logits, processor, prompt_ids, output_ids)


def follow(logits: Tensor, guide: Guide) -> None:
    """Rules out of a row of logits (V,), in place, what the form of the answer does not allow next.

    Raises:
        RequestError: nothing is left to draw.
    """
    logits.masked_fill_(~_on(logits, guide.allowed()), -torch.inf)
    if logits.max() == -torch.inf:
        raise RequestError(
            "no token can follow: the form asked for allows none of those that bad_words and logits processors leave, "
            "or only an end, and the model has no end token or it is ignored",
            code="no_token_left",
            param="structured_outputs",
        )


def _process(logits: Tensor, processor: LogitsProcessor, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
    try:
        processed = processor(tuple(prompt_ids), tuple(output_ids), logits)
    except Exception as error:  # it is the caller's: whatever it raises ends this row and no other
        raise _processor_failed(processor, f"{type(error).__name__}: {error}") from error
    if not isinstance(processed, Tensor) or processed.shape != logits.shape:
        shape = tuple(processed.shape) if isinstance(processed, Tensor) else type(processed).__name__
        raise _processor_failed(processor, f"it returned {shape}; expected a tensor of shape {tuple(logits.shape)}")
    logits.copy_(processed)


def _processor_failed(processor: LogitsProcessor, reason: str) -> RequestError:
    name = getattr(processor, "__name__", type(processor).__name__)
    return RequestError(
        f"logits processor {name} failed: {reason}", code="logits_processor_failed", param="logits_processors"
    )


def _add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> None:
    ids, values = zip(*bias, strict=True)
    logits[list(ids)] += torch.tensor(values, dtype=torch.float32, device=logits.device)


def _penalize_repetition(logits: Tensor, penalty: float, token_ids: Sequence[int]) -> None:
    """Divides the logits of tokens that occurred, or multiplies where they are negative (CTRL, arXiv 1909.05858)."""
    seen = _on(logits, np.unique(np.asarray(token_ids, dtype=np.int64)))
    values = logits[seen]
    logits[seen] = torch.where(values < 0, values * penalty, values / penalty)


def _penalize_presence(logits: Tensor, presence: float, frequency: float, output_ids: Sequence[int]) -> None:
    """OpenAI's penalties: of tokens of the answer alone, once and by how often they occurred."""
    ids, counts = np.unique(np.asarray(output_ids, dtype=np.int64), return_counts=True)
    logits[_on(logits, ids)] -= _on(logits, (presence + frequency * counts).astype(np.float32))


def _rule_out(logits: Tensor, word: Sequence[int], output_ids: Sequence[int]) -> None:
    """Rules out the last token of a word whose others have just come."""
    *before, last = word
    if list(output_ids[len(output_ids) - len(before) :]) == before:
        logits[last] = -torch.inf


def _on(logits: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(logits.device)
