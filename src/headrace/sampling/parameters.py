"""What a request may say about sampling, and what becomes of it beside the model's defaults. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from headrace.errors import CorruptCheckpointError, RequestError
from headrace.sampling.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from torch import Tensor

    LogitsProcessor = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]

# Below this a division by the temperature overflows float32, and the distribution has one token anyway.
GREEDY_TEMPERATURE = 1e-5
MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 100
MAX_SAMPLES = 16_384
MAX_REPETITION_PENALTY = 100.0
MAX_LOGIT_BIAS = 100.0
_SMALLEST = 1e-6

# Keys of generation_config.json that are followed as they are.
_FOLLOWED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")

# Keys of generation_config.json that change tokens and that we do not follow, with the values at which they do nothing.
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "begin_suppress_tokens": (),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "top_h": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one request wants its tokens drawn; `None` leaves a field to the model's defaults.

    Attributes:
        n: answers to give for the prompt.
        best_of: answers to draw for it, of which the `n` that are likeliest per token are given.
        max_tokens: tokens to generate at most.
        min_tokens: tokens to generate before an EOS or stop token may be drawn.
        temperature: 0 takes the most likely token.
        top_p: keep the smallest set of tokens whose probability reaches it.
        top_k: keep this many tokens; 0 or -1 keeps all.
        min_p: keep tokens at least this share as likely as the most likely one.
        typical_p: keep the smallest set of tokens of about average information whose probability reaches it.
        repetition_penalty: divides logits of tokens of prompt and answer (those below 0 are multiplied); 1 is off.
        presence_penalty: taken once from the logits of every token of the answer, -2 to 2.
        frequency_penalty: taken from them for every time that they occurred, -2 to 2.
        logit_bias: token id -> what is added to its logit, -100 to 100. Stored as a tuple of pairs.
        bad_words: texts, or lists of token ids, that the answer must not contain. Stored as a tuple.
        stop: text that ends the answer and is not part of it: one string or several. Stored as a tuple.
        stop_token_ids: tokens that end the answer, beside the model's own. Stored as a tuple.
        ignore_eos: go on after the model's own end tokens.
        seed: the same seed draws the same tokens, whatever else runs.
        logprobs: log-probabilities of each token and of this many most likely ones.
        prompt_logprobs: the same of the prompt's tokens, all but the first.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: the form that the answer must have; needs the extra `guided`.
        logits_processors: functions of (ids of the prompt, ids of the answer, float32 logits (V,)) that return the
            logits to draw from, one after the other. Stored as a tuple.

    Raises:
        RequestError: a value cannot be (code `invalid_value`, `param` names the field).
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    bad_words: Sequence[str | Sequence[int]] = ()
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    logits_processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        _check_int("n", self.n, low=1, high=MAX_SAMPLES, optional=False)
        _check_int("best_of", self.best_of, low=self.n, high=MAX_SAMPLES)
        _check_int("max_tokens", self.max_tokens, low=1)
        _check_int("min_tokens", self.min_tokens, low=0, optional=False)
        _check_float("temperature", self.temperature, high=MAX_TEMPERATURE)
        _check_float("top_p", self.top_p, high=1.0)
        _check_int("top_k", self.top_k, low=-1)
        _check_float("min_p", self.min_p, high=1.0)
        _check_float("typical_p", self.typical_p, low=_SMALLEST, high=1.0)
        _check_float("repetition_penalty", self.repetition_penalty, low=_SMALLEST, high=MAX_REPETITION_PENALTY)
        _check_float("presence_penalty", self.presence_penalty, low=-2.0, high=2.0, optional=False)
        _check_float("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0, optional=False)
        _check_bool("ignore_eos", self.ignore_eos)
        _check_int("seed", self.seed, low=-(2**63), high=2**64 - 1)
        _check_int("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        _check_int("prompt_logprobs", self.prompt_logprobs, low=0, high=MAX_LOGPROBS)
        _check_bool("skip_special_tokens", self.skip_special_tokens)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        object.__setattr__(self, "bad_words", _bad_words(self.bad_words))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            _refuse("structured_outputs", self.structured_outputs, "StructuredOutputs")
        if self.structured_outputs is not None and self.min_tokens:
            _refuse("min_tokens", self.min_tokens, "0 beside structured outputs, whose form says where an answer ends")
        object.__setattr__(self, "logits_processors", _processors(self.logits_processors))

    def resolve(
        self,
        defaults: GenerationDefaults,
        *,
        default_max_tokens: int,
        room: int,
        word_forms: Callable[[str], Sequence[Sequence[int]]] = lambda word: (),
    ) -> ResolvedSampling:
        """Returns these parameters with nothing left open.

        Without a temperature, the request is greedy, as in transformers' `generate`, unless the model's
        `generation_config.json` says that it samples (then the temperature is the model's) or the request sets
        `top_p`, `top_k`, `min_p`, `typical_p` or `seed` (then it is 1). `max_tokens` is cut to the room.

        Args:
            default_max_tokens: `max_tokens` of a request that does not say; raised to its `min_tokens`.
            room: tokens between the end of the prompt and the end of the context.
            word_forms: the token ids of a word, in each way in which it may come.

        Raises:
            RequestError: there is no room (code `context_length_exceeded`).
        """
        if room < 1:
            raise RequestError(
                f"the prompt leaves no room to generate: {room} tokens remain of the context; shorten the prompt",
                code="context_length_exceeded",
                param="prompt",
            )
        wanted = max(default_max_tokens, self.min_tokens) if self.max_tokens is None else self.max_tokens
        max_tokens = min(wanted, room)
        temperature = self.temperature
        if temperature is None:
            said = (self.top_p, self.top_k, self.min_p, self.typical_p, self.seed)
            wants_draws = any(value is not None for value in said)
            temperature = defaults.temperature if defaults.do_sample else None
            if temperature is None:
                temperature = 1.0 if defaults.do_sample or wants_draws else 0.0
        return ResolvedSampling(
            n=self.best_of or self.n,
            num_kept=self.n,
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens, max_tokens),
            temperature=0.0 if temperature < GREEDY_TEMPERATURE else float(temperature),
            top_p=float(_first(self.top_p, defaults.top_p, 1.0)),
            top_k=max(0, int(_first(self.top_k, defaults.top_k, 0))),
            min_p=float(_first(self.min_p, defaults.min_p, 0.0)),
            typical_p=float(_first(self.typical_p, defaults.typical_p, 1.0)),
            repetition_penalty=float(_first(self.repetition_penalty, defaults.repetition_penalty, 1.0)),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            logit_bias=tuple(self.logit_bias),  # type: ignore[arg-type]
            bad_words=tuple(
                tuple(form)
                for word in (*self.bad_words, *defaults.bad_words)
                for form in (word_forms(word) if isinstance(word, str) else (word,))
            ),
            stop=tuple(self.stop),
            stop_token_ids=frozenset(self.stop_token_ids),
            eos_token_ids=frozenset() if self.ignore_eos else frozenset(defaults.eos_token_ids),
            seed=self.seed,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
            structured_outputs=self.structured_outputs,
            logits_processors=tuple(self.logits_processors),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """What a model's `generation_config.json` says about sampling.

    Attributes:
        do_sample: whether the model's authors sample from it.
        eos_token_ids: tokens that end an answer.
        ignored: keys set in the file that change tokens and that Headrace does not follow, sorted; for the start line.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> GenerationDefaults:
        """Returns the defaults in `values`, the content of a `generation_config.json`.

        Raises:
            CorruptCheckpointError: a value has the wrong type or range.
        """
        eos = values.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        known: dict[str, Any] = {key: values.get(key) for key in _FOLLOWED}
        try:
            checked = SamplingParams(**known, stop_token_ids=eos_ids, bad_words=values.get("bad_words_ids") or ())  # type: ignore[arg-type]
            _check_bool("do_sample", values.get("do_sample") or False)
        except RequestError as error:
            param = {"stop_token_ids": "eos_token_id", "bad_words": "bad_words_ids"}.get(error.param or "", error.param)
            raise CorruptCheckpointError(
                f"generation_config.json: {param}: {error}; put the value right or delete the key"
            ) from error
        return cls(
            do_sample=bool(values.get("do_sample")),
            **{key: getattr(checked, key) for key in _FOLLOWED},
            bad_words=tuple(tuple(word) for word in checked.bad_words if not isinstance(word, str)),
            eos_token_ids=tuple(checked.stop_token_ids),
            ignored=tuple(key for key, neutral in _NEUTRAL_VALUES.items() if _acts(values.get(key), neutral)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedSampling:
    """Sampling with nothing left open; made by `SamplingParams.resolve`.

    Attributes:
        n: answers to draw, of which the likeliest `num_kept` are given.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        typical_p, repetition_penalty: 1 is off.
        bad_words: token ids of which the last must not follow the others.
        eos_token_ids: the model's end tokens, empty where they are ignored.
    """

    n: int = 1
    num_kept: int = 1
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def adjusts_logits(self) -> bool:
        """Whether the parameters and the row's tokens change its logits; a form of the answer comes on top."""
        has_penalty = self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return has_penalty or bool(self.logit_bias or self.bad_words or self.logits_processors)

    @property
    def needs_logprobs(self) -> bool:
        """Whether the log-probability of each token is wanted, or decides which answers are given."""
        return self.logprobs is not None or self.num_kept < self.n

    @property
    def depends_on_each_token(self) -> bool:
        """Whether something has to see each token before the next can be drawn."""
        return self.structured_outputs is not None or bool(self.logits_processors)

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Every token that ends the answer; `min_tokens` keeps them from being drawn."""
        return self.eos_token_ids | self.stop_token_ids


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _acts(value: object, neutral: tuple[object, ...]) -> bool:
    return value is not None and value not in ([], {}) and value not in neutral


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise RequestError(f"{name} is {value!r}; expected {expected}", code="invalid_value", param=name)


def _check_int(name: str, value: object, *, low: int, high: int | None = None, optional: bool = True) -> None:
    if value is None and optional:
        return
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):  # type: ignore[operator]
        _refuse(name, value, f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}")


def _check_float(name: str, value: object, *, low: float = 0.0, high: float, optional: bool = True) -> None:
    if value is None and optional:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]
        _refuse(name, value, f"a number from {low:g} to {high:g}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")


def _stop_strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
    if strings is None or not all(isinstance(string, str) and string for string in strings):
        _refuse("stop", value, "a string or a list of strings, none of them empty")
    return strings


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    """Accepts ids as text, too: JSON has no other keys."""
    pairs = value.items() if isinstance(value, Mapping) else value or ()
    try:
        biases = sorted((int(token_id), float(bias)) for token_id, bias in pairs)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        biases = [(-1, 0.0)]
    if not all(token_id >= 0 and abs(bias) <= MAX_LOGIT_BIAS for token_id, bias in biases):
        _refuse("logit_bias", value, f"token ids with numbers from {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}")
    return tuple(biases)


def _bad_words(value: object) -> tuple[str | tuple[int, ...], ...]:
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
    if words is None or not all(words):
        _refuse("bad_words", value, "a list of texts, or of lists of token ids, none of them empty")
    return tuple(word if isinstance(word, str) else _token_ids("bad_words", word) for word in words)


def _processors(value: object) -> tuple[LogitsProcessor, ...]:
    processors = tuple(value) if isinstance(value, list | tuple) else None
    if processors is None or not all(callable(processor) for processor in processors):
        _refuse("logits_processors", value, "a list of functions")
    return processors


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple | set | frozenset) else None
    if ids is None or not all(isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0 for id_ in ids):
        _refuse(name, value, "a list of token ids")
    return ids
