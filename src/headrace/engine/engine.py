"""The engine: requests in, tokens out. Its loop is the three lines of `step`."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from torch import Tensor

from headrace.engine.answer import Answer, best_of, seconds_per_token
from headrace.engine.drawing import draw
from headrace.engine.interrupts import held_interrupts
from headrace.engine.outputs import RequestMetrics, RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.executor.block_moves import BlockMoveError
from headrace.executor.executor import Executor, Sampled, token_ids
from headrace.models.layer_table import LengthRule
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer
from headrace.planner.filling import Filling
from headrace.planner.preemption import SweepSpeed
from headrace.sampling.guidance import Guidance
from headrace.sampling.parameters import GenerationDefaults, ResolvedSampling
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.sequence import Rejection, Restart, Status
from headrace.scheduler.sequence import Sequence as ScheduledSequence
from headrace.scheduler.sweep import Chunk, Sweep
from headrace.storage.governor import Governor

_SWEEPS_PER_CHECK = 4
_SMALLEST_SWEEP = 16
_WINDOW = 2
"""Answers that are in the engine at a time, as a multiple of those that can run."""
_WAITING_SWEEPS = 64
"""Sweeps whose tokens may wait: some ten bytes each, which nothing else bounds."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Running:
    """A request that has been added and has not ended."""

    ticket: int
    request: GenerationRequest
    arrived_seconds: float
    answers: list[Answer]
    sequences: list[ScheduledSequence]
    num_open: int
    started_seconds: float | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Engine:
    """Runs requests to their ends, all together, sweep by sweep.

    Attributes:
        guidance: knows which tokens the form of an answer allows.
        max_model_len: tokens of prompt and answer together.
        seed: from which requests without a seed of their own get one.
        speed: what the engine was measured to do so far.
        filling: how large sweeps hide the reading of their weights; None where all weights stay.
        speculate: tokens are guessed where computing them costs no time.
        length_rule: how KV depends on how long a row is; None where it does not.
        give_back: gives the memory of KV blocks, named by group, back to the system where that is possible.
        finished: outputs that nobody has taken yet, by ticket; whoever added the request takes it out.
    """

    scheduler: Scheduler
    executor: Executor
    governor: Governor
    tokenizer: Tokenizer | WithoutTokenizer
    guidance: Guidance
    defaults: GenerationDefaults
    max_model_len: int
    vocab_size: int
    seed: int
    speed: SweepSpeed = field(default_factory=SweepSpeed)
    filling: Filling | None = None
    speculate: bool = True
    length_rule: LengthRule | None = None
    give_back: Callable[[Sequence[Sequence[int]]], None] = lambda blocks: None
    finished: dict[int, RequestOutput] = field(default_factory=dict)
    _running: dict[int, _Running] = field(default_factory=dict)
    _answers: dict[int, tuple[_Running, Answer]] = field(default_factory=dict)
    _tickets: itertools.count[int] = field(default_factory=itertools.count)
    _sequence_ids: itertools.count[int] = field(default_factory=itertools.count)
    _num_sweeps: int = 0
    _num_waiting_tokens: int = 0

    def check(self, request: GenerationRequest) -> ResolvedSampling:
        """Returns how the request would be sampled.

        Raises:
            RequestError: it cannot be served.
        """
        self._check_prompt(request.prompt_token_ids)
        room = self.max_model_len - len(request.prompt_token_ids)
        sampling = request.params.resolve(
            self.defaults, default_max_tokens=room, room=room, word_forms=self.tokenizer.word_forms
        )
        self._check_in_vocabulary("logit_bias", [token_id for token_id, _ in sampling.logit_bias])
        self._check_in_vocabulary("bad_words", [token_id for word in sampling.bad_words for token_id in word])
        if sampling.structured_outputs is not None:
            self.guidance.check(sampling.structured_outputs)
        return sampling

    def add(self, request: GenerationRequest) -> int:
        """Takes a request in, to run with the next sweeps; returns the ticket under which it ends in `finished`.

        Raises:
            RequestError: it cannot be served; nothing was taken in.
        """
        sampling = self.check(request)
        seed = sampling.seed if sampling.seed is not None else derived_seed(self.seed, request.request_id)
        running = _Running(
            ticket=next(self._tickets),
            request=request,
            arrived_seconds=time.perf_counter(),
            answers=[],
            sequences=[],
            num_open=sampling.n,
        )
        salt, restart = salt_and_restart(self.length_rule, len(request.prompt_token_ids))
        self._running[running.ticket] = running
        self._num_waiting_tokens += len(request.prompt_token_ids)
        for index in range(sampling.n):
            sequence = ScheduledSequence(
                sequence_id=next(self._sequence_ids),
                request_id=request.request_id,
                sample_index=index,
                prompt_ids=request.prompt_token_ids,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                stop_ids=sampling.ending_token_ids,
                salt=salt,
                restart=restart,
                scores_prompt=sampling.prompt_logprobs is not None and index == 0,
                guesses=not sampling.depends_on_each_token,
            )
            answer = Answer(
                index=index,
                sampling=sampling,
                seed=seed,
                decoder=self.tokenizer,
                only_appends=self.tokenizer.only_appends,
                prompt_ids=request.prompt_token_ids,
                guide=self.guidance.guide(sampling),
            )
            running.answers.append(answer)
            running.sequences.append(sequence)
            self._answers[sequence.sequence_id] = (running, answer)
            self.scheduler.add(sequence)
        return running.ticket

    def step(self) -> None:
        """Runs one sweep, if there is anything to run; what it finishes is in `finished`.

        Raises:
            SweepError: the sweep failed; every request is as it was before it.
            BudgetError: memory is above the budget and the smallest sweep does not help.
        """
        under_way: Sweep | None = None
        try:
            with held_interrupts():
                under_way = sweep = self.scheduler.next_sweep()
                self._note_start(sweep)
            if sweep is not None:
                sampled = self._run(sweep)
                with held_interrupts():
                    under_way = None
                    self.scheduler.commit(sweep, token_ids(sampled))
                    self._accept(sampled)
        except BlockMoveError as error:
            assert under_way is not None, "blocks are moved before anything is computed"
            self.scheduler.abandon(under_way)
            self.scheduler.stop_moving()
            logger.warning("%s; rows that lose their KV are computed again from now on", error)
        except BaseException:  # Ctrl-C too: a chat goes on after it
            if under_way is not None:
                self.scheduler.abandon(under_way)
            raise
        for rejection in self.scheduler.take_rejected():
            self._reject(rejection)
        self._govern()

    def _run(self, sweep: Sweep) -> Sampled:
        started = time.perf_counter()
        tokens = self.executor.run(sweep, self._draw)
        seconds = time.perf_counter() - started
        self.speed.note(sweep.num_tokens, seconds)
        if self.filling is not None:
            self.filling.note(sweep.num_tokens, seconds)
            self.scheduler.limits = replace(
                self.scheduler.limits,
                filling_tokens=self.filling.num_tokens,
                guessing_tokens=self.filling.hidden_tokens if self.speculate else 0,
            )
        return tokens

    @property
    def wants_more(self) -> bool:
        """Whether more requests would find room soon; a caller with many adds no more than this asks for."""
        limits = self.scheduler.limits
        return (
            len(self._answers) < _WINDOW * limits.max_num_seqs
            and self._num_waiting_tokens < _WAITING_SWEEPS * limits.max_num_batched_tokens
        )

    def cancel(self, ticket: int) -> None:
        """Ends a request whose caller no longer wants it, and drops its output."""
        self.finished.pop(ticket, None)
        running = self._running.pop(ticket, None)
        if running is not None:
            self._forget(running)

    def first_answer(self, ticket: int) -> Answer:
        """Returns the growing answer of a request that has just been added, to read from it as it grows."""
        return self._running[ticket].answers[0]

    def _note_start(self, sweep: Sweep | None) -> None:
        """Notes when a request is in a sweep for the first time."""
        now = time.perf_counter()
        for micro_batch in sweep.micro_batches if sweep is not None else ():
            for chunk in micro_batch.chunks:
                running, _ = self._answers[chunk.sequence_id]
                if running.started_seconds is None:
                    running.started_seconds = now
                    self._num_waiting_tokens -= len(running.request.prompt_token_ids)

    def _draw(self, logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        """The executor's sampler."""
        return draw(logits, chunks, lambda sequence_id: self._answers[sequence_id][1])

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty; expected at least one token", code="empty_prompt", param="prompt")
        if len(token_ids) >= self.max_model_len:
            raise RequestError(
                f"the prompt has {len(token_ids)} tokens; the context holds {self.max_model_len}, the answer included; "
                "shorten the prompt, or raise --max-model-len where the model and the memory allow it",
                code="context_length_exceeded",
                param="prompt",
            )
        self._check_in_vocabulary("prompt", token_ids)

    def _check_in_vocabulary(self, param: str, token_ids: Sequence[int]) -> None:
        outside = next((token for token in token_ids if not 0 <= token < self.vocab_size), None)
        if outside is not None:
            raise RequestError(
                f"token {outside} is not in the vocabulary of {self.vocab_size}; expected ids of the model's tokenizer",
                code="invalid_value",
                param=param,
            )

    def _accept(self, sampled: Sampled) -> None:
        """Hands new tokens to their answers, and ends the requests whose last answer has ended.

        All tokens of a sweep come at one time.
        """
        now = time.perf_counter()
        for sequence_id, tokens in sampled.items():
            found = self._answers.get(sequence_id)
            if found is None:  # a sibling that could not go on ended the request a moment ago
                continue
            running, answer = found
            sequence = running.sequences[answer.index]
            broken = next((token for token in tokens if token.error is not None or not token.is_finite), None)
            if broken is not None:
                self._fail(running, broken.error or _not_finite())
                continue
            reason = sequence.finish_reason
            assert reason != "cancelled", "a cancelled sequence is in no sweep"
            new = tokens[: sequence.num_output_tokens - answer.num_tokens]
            if answer.accept_all(new, reason, seconds=now):
                self.scheduler.finish(sequence_id, "stop")
            if answer.finish_reason is not None:
                del self._answers[sequence_id]
                running.num_open -= 1
                if not running.num_open:
                    self._complete(running)

    def _complete(self, running: _Running) -> None:
        del self._running[running.ticket]
        answers = running.answers
        firsts = [answer.token_seconds[0] for answer in answers if answer.token_seconds]
        assert running.started_seconds is not None, "a request ends after its first sweep"
        self.finished[running.ticket] = RequestOutput(
            request_id=running.request.request_id,
            prompt=running.request.prompt,
            prompt_token_ids=running.request.prompt_token_ids,
            outputs=tuple(replace(answer.completion(), index=place) for place, answer in enumerate(best_of(answers))),
            prompt_logprobs=answers[0].prompt_logprobs,
            metrics=RequestMetrics(
                arrived_seconds=running.arrived_seconds,
                ttft_seconds=min(firsts) - running.arrived_seconds,
                tpot_seconds=seconds_per_token(answers),
                queued_seconds=running.started_seconds - running.arrived_seconds,
                num_cached_tokens=running.sequences[0].num_prefix_hit_tokens,
                num_preemptions=sum(sequence.num_preemptions for sequence in running.sequences),
                num_moved_down=sum(sequence.num_moved_down for sequence in running.sequences),
            ),
        )

    def _reject(self, rejection: Rejection) -> None:
        found = self._answers.get(rejection.sequence.sequence_id)
        if found is None:  # a sibling's rejection ended the request a moment ago
            return
        error = RequestError(
            f"the row has {rejection.num_tokens} tokens; memory holds the KV of {rejection.capacity_tokens} per row; "
            "give more with --memory, or shorten it",
            code="context_length_exceeded",
            param="prompt",
        )
        self._fail(found[0], error)

    def _fail(self, running: _Running, error: RequestError) -> None:
        del self._running[running.ticket]
        self._forget(running)
        self.finished[running.ticket] = failed_output(running.request, error)

    def _forget(self, running: _Running) -> None:
        """Ends what is left of a request in the scheduler."""
        if running.started_seconds is None:
            self._num_waiting_tokens -= len(running.request.prompt_token_ids)
        for sequence in running.sequences:
            self._answers.pop(sequence.sequence_id, None)
            if sequence.status is not Status.FINISHED:
                self.scheduler.finish(sequence.sequence_id, "cancelled")

    def _govern(self) -> None:
        """Makes sweeps smaller while the process uses more memory than it was given; then there is less KV."""
        self._num_sweeps += 1
        if self._num_sweeps % _SWEEPS_PER_CHECK or not self.governor.pressed():
            return
        limits = self.scheduler.limits
        if limits.max_num_batched_tokens <= _SMALLEST_SWEEP:
            self._shrink_kv()
            return
        smaller = max(_SMALLEST_SWEEP, limits.max_num_batched_tokens // 2)
        self.scheduler.limits = replace(
            limits,
            max_num_batched_tokens=smaller,
            max_micro_batch_tokens=min(limits.max_micro_batch_tokens, smaller),
            max_num_seqs=min(limits.max_num_seqs, smaller),
            max_num_logits=min(limits.max_num_logits, smaller),
        )

    def _shrink_kv(self) -> None:
        """Gives back the memory of KV that nobody uses; if that is not enough, one row less runs from now on."""
        self.give_back(self.scheduler.drop_unused())
        if self.governor.pressed() and not self.scheduler.run_one_less():
            self.governor.check()


def _not_finite() -> RequestError:
    return RequestError(
        "the model's logits for this row are not finite; the dtype may be too narrow (try --dtype float32 or bfloat16) "
        "or the checkpoint damaged",
        code="non_finite_logits",
    )


def salt_and_restart(rule: LengthRule | None, num_prompt_tokens: int) -> tuple[str, Restart | None]:
    """Returns what keeps a row's KV apart from that of rows of other lengths, and when it is of no use any more."""
    if rule is None:
        return "", None
    salt = rule.salt(num_prompt_tokens)
    if not rule.starts_again or num_prompt_tokens > rule.threshold:
        return salt, None
    return salt, Restart(num_tokens=rule.threshold, salt=rule.salt(rule.threshold + 1))


def failed_output(request: GenerationRequest, error: RequestError) -> RequestOutput:
    """Returns the output of a request that ended with `error`."""
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=request.prompt_token_ids,
        outputs=(),
        error=error,
    )


def derived_seed(seed: int, request_id: int) -> int:
    """Returns the seed of a request that names none: 64 bits that depend on the engine's seed and its number."""
    return int.from_bytes(blake2b(f"{seed}:{request_id}".encode(), digest_size=8).digest())
