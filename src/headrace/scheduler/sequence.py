"""A sequence: a prompt and what has been generated after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from headrace.scheduler.guessing import Guessing

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """When a sequence has more than `num_tokens` tokens, all of them are computed again; then `salt` is its salt."""

    num_tokens: int
    salt: str


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """One sample of one request. The scheduler alone changes it.

    Attributes:
        sequence_id: unique among the sequences that are not finished.
        request_id: shared by the `n` samples of a request.
        sample_index: which of the `n` samples this is.
        prompt_ids: at least one token.
        max_tokens: generation ends after this many tokens, at least one.
        min_tokens: a stop id ends the generation only after this many other tokens.
        stop_ids: tokens that end the generation, end-of-sequence tokens included.
        salt: sequences of different salt share no KV (adapter, KV codec).
        restart: when it has to be computed again from its first token on.
        scores_prompt: the logits of its prompt are wanted; it shares no KV then, which would leave them out.
        guesses: whether its next tokens may be guessed, for as long as that is room for.

        num_at_once: leading tokens that `generate` would compute at once: the prompt, until it has started again.
        token_ids: all known tokens: the prompt, then what was generated, a stop token included.
        num_computed: leading tokens whose KV or state is committed.
        num_scored: leading tokens whose logits have been computed, where they are wanted.
        guessing: what its next tokens are guessed from, and how many of them.
        stop_token: the stop id that ended the generation.
        num_prefix_hit_tokens: prompt tokens that were found in the cache when the sequence first ran.
        num_preemptions: how often its blocks were taken away.
        num_moved_down: how often their content was kept below then.
    """

    sequence_id: int
    request_id: int
    sample_index: int = 0
    prompt_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    salt: str = ""
    restart: Restart | None = None
    scores_prompt: bool = False
    guesses: bool = True

    num_at_once: int = field(init=False)
    token_ids: list[int] = field(init=False)
    num_computed: int = field(init=False, default=0)
    num_scored: int = field(init=False, default=0)
    guessing: Guessing = field(init=False, default_factory=Guessing)
    status: Status = field(init=False, default=Status.WAITING)
    finish_reason: FinishReason | None = field(init=False, default=None)
    stop_token: int | None = field(init=False, default=None)
    num_prefix_hit_tokens: int = field(init=False, default=0)
    num_preemptions: int = field(init=False, default=0)
    num_moved_down: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        assert self.prompt_ids, f"sequence {self.sequence_id} has no token to begin with"
        assert self.max_tokens > 0, f"sequence {self.sequence_id} would generate {self.max_tokens} tokens"
        self.token_ids = list(self.prompt_ids)
        self.num_at_once = len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Number of known tokens."""
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Number of known tokens that are yet to be computed: 1 while decoding, more during prefill."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_to_score(self) -> int:
        """Number of leading tokens whose logits are still wanted: all of the prompt but the last, which is sampled."""
        done = not self.scores_prompt or self.num_scored >= len(self.prompt_ids) - 1
        return 0 if done else len(self.prompt_ids) - 1

    @property
    def num_before_restart(self) -> int | None:
        """How many more tokens it can have before it starts again; None if it does not."""
        return None if self.restart is None else self.restart.num_tokens - len(self.token_ids)

    def start_again(self) -> None:
        """What was computed of it is of no use any more."""
        assert self.restart is not None
        self.salt, self.restart, self.num_at_once = self.restart.salt, None, len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        """A new list of the generated tokens, a stop token included."""
        return self.token_ids[len(self.prompt_ids) :]

    def extend(self, token_ids: Iterable[int]) -> None:
        """Adds generated tokens up to one that finishes the sequence."""
        for token_id in token_ids:
            self.append(token_id)
            if self.status is Status.FINISHED:
                break

    def append(self, token_id: int) -> None:
        """Adds a generated token, which may finish the sequence."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids and self.num_output_tokens > self.min_tokens:
            self.stop_token = token_id
            self.finish("stop")
        elif self.num_output_tokens >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """Nothing is generated any more."""
        self.status = Status.FINISHED
        self.finish_reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A sequence that the KV cache cannot hold even alone. It is finished, without a finish reason.

    Attributes:
        num_tokens: how many tokens it has.
        capacity_tokens: how many fit.
    """

    sequence: Sequence
    num_tokens: int
    capacity_tokens: int
