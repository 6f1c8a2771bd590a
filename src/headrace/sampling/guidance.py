"""Which tokens may come next, so that an answer gets the form that was asked for. Grammars are llguidance's.

Between two tokens of an answer its matcher reckons the next set of allowed tokens, a **mask**, in a thread of this
module, while the engine runs the sweep whose logits the mask is for. The sampler waits only for what is not there yet.

llguidance wants one end token, of the tokenizer. Models have none, one or several of their own, and requests add
others, so the tokenizer that it is given has one more token, an **end mark** that no model knows: where the mark is
allowed, the text may end, and the row's own end tokens are allowed instead.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from headrace.errors import RequestError
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.structured_outputs import StructuredOutputs
from headrace.trace import Trace

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

END_MARK = "<|headrace end of guided text|>"
_NUM_THREADS = 2
_MAX_GRAMMARS = 64
"""Compiled grammars that are kept; some MiB each for large schemas."""
# What may stand between the parts of a JSON text: without a bound a small model goes on with spaces for ever.
_WHITESPACE = r" |\n[ \t]{0,12}"


class Definable(Protocol):
    """A tokenizer that can say what it is."""

    def definition(self, end_mark: str) -> tuple[str, int]:
        """Returns it as the JSON text of `tokenizers`, with `end_mark` added as a special token, and that token's id.

        Raises:
            RequestError: it has no such form.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grammar:
    """A grammar that has been compiled, and the mask with which each of its answers begins."""

    matcher: LLMatcher
    first_mask: Future[bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _EndTokens:
    """Tokens that end an answer.

    Attributes:
        mark: where a mask says that the text may end.
        known: all that are end tokens for the model or for the row; they are no text.
        own: those that end this row.
    """

    mark: int
    known: list[int]
    own: list[int]


class Guidance:
    """What an engine needs to guide answers; made once for it, and closed with it. Nothing happens until it is used."""

    def __init__(self, tokenizer: Definable, *, num_tokens: int, end_token_ids: Collection[int], trace: Trace) -> None:
        """Takes the tokenizer, the width of the model's logits, and the model's end tokens."""
        self._definable = tokenizer
        self._num_tokens = num_tokens
        self._end_token_ids = frozenset(end_token_ids)
        self._trace = trace
        self._tokenizer: LLTokenizer | None = None
        self._end_mark = 0
        self._grammars: OrderedDict[StructuredOutputs, _Grammar] = OrderedDict()
        self._pool: Executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="guide")

    def check(self, wanted: StructuredOutputs) -> None:
        """Compiles what is wanted, and begins its first mask, if that has not been done of late.

        Raises:
            RequestError: llguidance refuses it or is not installed, or it cannot read the model's tokenizer.
        """
        self._grammar(wanted)

    def guide(self, sampling: ResolvedSampling) -> Guide | None:
        """Returns the guide of a new answer, where one is asked for.

        Raises:
            RequestError: as `check`.
        """
        if sampling.structured_outputs is None:
            return None
        grammar = self._grammar(sampling.structured_outputs)
        known = self._end_token_ids | sampling.ending_token_ids
        ends = _EndTokens(
            mark=self._end_mark,
            known=[token_id for token_id in known if token_id < self._num_tokens],
            own=[token_id for token_id in sampling.ending_token_ids if token_id < self._num_tokens],
        )
        return Guide(self, grammar.matcher.deep_copy(), grammar.first_mask, ends, self._num_tokens)

    def begin_mask(self, matcher: LLMatcher) -> Future[bytes]:
        """Reckons the next mask of `matcher` in a thread; nobody else may use the matcher until it is there."""
        return self._pool.submit(self._mask, matcher)

    def close(self) -> None:
        """Ends the threads, after what they are at; a second call does nothing."""
        self._pool.shutdown(cancel_futures=True)

    def _mask(self, matcher: LLMatcher) -> bytes:
        with self._trace.span(threading.current_thread().name, "mask"):
            mask = matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError(
                "llguidance cannot follow the form asked for to its end; change it or make it simpler: "
                f"{_reason(matcher.get_error())}",
                code="guide_failed",
                param="structured_outputs",
            )
        return mask

    def _grammar(self, wanted: StructuredOutputs) -> _Grammar:
        found = self._grammars.get(wanted)
        if found is None:
            found = self._compile(wanted)
            self._grammars[wanted] = found
            if len(self._grammars) > _MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(wanted)
        return found

    def _compile(self, wanted: StructuredOutputs) -> _Grammar:
        text = _grammar_text(wanted)
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self._own_tokenizer(), text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise _refused(wanted, matcher.get_error())
        if matcher.is_stopped():
            raise _refused(wanted, "no text has this form")
        return _Grammar(matcher=matcher, first_mask=self.begin_mask(matcher.deep_copy()))

    def _own_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            text, self._end_mark = self._definable.definition(END_MARK)
            width = max(self._num_tokens, self._end_mark + 1)
            try:
                self._tokenizer = LLTokenizer(text, n_vocab=width, eos_token=self._end_mark)
            except ValueError as error:
                raise RequestError(
                    f"llguidance cannot read this model's tokenizer: {error}; leave structured outputs out",
                    code="unsupported_tokenizer",
                    param="structured_outputs",
                ) from error
        return self._tokenizer


class Guide:
    """What may come next in one answer; follows its tokens."""

    def __init__(
        self, guidance: Guidance, matcher: LLMatcher, first_mask: Future[bytes], ends: _EndTokens, num_tokens: int
    ) -> None:
        self._guidance = guidance
        self._matcher = matcher
        self._mask = first_mask
        self._ends = ends
        self._num_tokens = num_tokens

    def accept(self, token_id: int, *, is_last: bool = False) -> bool:
        """Takes the next token, one that was allowed and is no end token; returns whether the text is now complete.

        It is when nothing but the end can follow. Otherwise the next mask is begun, unless this is the last token.
        """
        self._mask.result()  # the matcher is with a thread until then; the sampler has waited for it before
        self._matcher.consume_token(token_id)
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return True
        if not is_last:
            self._mask = self._guidance.begin_mask(self._matcher)
        return False

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Returns for every token of the vocabulary whether it may come next; waits until that is known.

        Raises:
            RequestError: the matcher cannot go on.
        """
        bits = np.unpackbits(np.frombuffer(self._mask.result(), dtype=np.uint8), bitorder="little").astype(np.bool_)
        may_end = bits[self._ends.mark]
        allowed: npt.NDArray[np.bool_] = bits[: self._num_tokens]
        allowed[self._ends.known] = False
        if self._ends.mark < self._num_tokens:
            allowed[self._ends.mark] = False
        if may_end:
            allowed[self._ends.own] = True
        return allowed


def check_structure(wanted: StructuredOutputs) -> None:
    """Checks what can be checked without a model.

    Raises:
        RequestError: llguidance refuses it or is not installed.
    """
    text = _grammar_text(wanted)
    from llguidance import LLMatcher, LLParserLimits

    reason = LLMatcher.validate_grammar(text, limits=LLParserLimits(verbose_errors=False))
    if reason:
        raise _refused(wanted, reason)


def _grammar_text(wanted: StructuredOutputs) -> str:
    """Returns what is wanted in llguidance's own form."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise RequestError(
            "structured outputs need llguidance, which is not installed; pip install 'headrace[guided]'",
            code="missing_dependency",
            param="structured_outputs",
        ) from None
    if isinstance(wanted.json, str):
        return LLMatcher.grammar_from_json_schema(wanted.json, defaults={"whitespace_pattern": _WHITESPACE})
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.choice is not None:
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(json.dumps, wanted.choice))}")
    assert wanted.grammar is not None, "one of the four is set"
    return LLMatcher.grammar_from_lark(wanted.grammar)


def _refused(wanted: StructuredOutputs, error: str) -> RequestError:
    name = {"json": "JSON schema", "regex": "regular expression"}.get(wanted.kind, wanted.kind)
    return RequestError(f"the {name} is refused: {_reason(error)}", code="invalid_value", param="structured_outputs")


def _reason(error: str) -> str:
    """Returns a message of llguidance's in one line, without its drawings, states and backtraces."""
    lines = [line.strip() for line in error.partition("\n<")[0].splitlines()]
    return " ".join(line for line in lines if line and not re.fullmatch(r"\^+|\d+ \| .*", line))
