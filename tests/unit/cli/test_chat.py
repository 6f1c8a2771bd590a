"""A conversation with a model that says the last message back."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from headrace.cli.chat import Conversation, stoppable_answers, talk
from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams
from headrace.testing import EchoLLM


def conversation(model: EchoLLM | None = None, *, system: str | None = None, **params: object) -> Conversation:
    return Conversation(model=model or EchoLLM(), params=SamplingParams(**params), system=system)  # type: ignore[arg-type]


def held(talked: Conversation, *lines: str, stopped: Callable[[], bool] = lambda: False) -> tuple[str, list[str], bool]:
    """What was written, what was said, and whether something failed."""
    written: list[str] = []
    said: list[str] = []
    failed = talk(talked, lines, write=written.append, say=said.append, stopped=stopped)
    return "".join(written), said, failed


def test_every_line_is_answered_and_remembered() -> None:
    talked = conversation()
    assert held(talked, "one", "", "two") == ("one\ntwo\n", [], False)
    assert [turn["content"] for turn in talked.turns] == ["one", "one", "two", "two"]
    assert [turn["role"] for turn in talked.turns] == ["user", "assistant"] * 2


def test_exit_ends_the_conversation() -> None:
    assert held(conversation(), "one", "/exit", "two")[0] == "one\n"
    assert held(conversation(), "/quit", "two")[0] == ""


def test_clear_forgets_what_was_said_but_not_the_system_message() -> None:
    talked = conversation(system="be kind")
    held(talked, "one", "/clear")
    assert (talked.turns, talked.system) == ([], "be kind")


def test_system_sets_the_message_and_begins_anew() -> None:
    talked = conversation()
    held(talked, "one", "/system be brief")
    assert (talked.turns, talked.system) == ([], "be brief")
    held(talked, "/system")
    assert talked.system is None


def test_the_system_message_comes_first() -> None:
    seen: list[list[dict[str, str]]] = []

    class Watched(EchoLLM):
        def stream_chat(self, messages, params=None, /):  # type: ignore[no-untyped-def]
            seen.append(list(messages))
            return super().stream_chat(messages, params)

    held(conversation(Watched(), system="be kind"), "one")
    assert [message["role"] for message in seen[0]] == ["system", "user"]


def test_help_and_unknown_commands_do_not_reach_the_model() -> None:
    written, said, failed = held(conversation(), "/help", "/clera")
    assert (written, failed) == ("", False)
    assert "/system TEXT" in said[0]
    assert said[1] == "unknown command /clera; did you mean /clear?; /help shows them all"


def test_a_message_may_begin_with_a_slash() -> None:
    assert held(conversation(), "/etc/passwd is a file", "//help me")[0] == "/etc/passwd is a file\n/help me\n"


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    count = iter(range(100))
    talked = conversation()
    written, said, failed = held(talked, "abcdef", "/exit", stopped=lambda: next(count) == 2)
    assert (written, said, failed) == ("abc\n", ["\n(stopped)"], False)
    assert talked.turns[-1] == {"role": "assistant", "content": "abc"}


def test_max_tokens_is_the_rest_of_the_context() -> None:
    talked = conversation(EchoLLM(max_model_len=40))
    assert held(talked, "x" * 15)[0] == "x" * (40 - len(EchoLLM().tokenizer.encode_chat([talked.turns[0]]))) + "\n"


def test_a_smaller_max_tokens_holds() -> None:
    assert held(conversation(max_tokens=3), "abcdef")[0] == "abc\n"


def test_a_message_that_does_not_fit_is_refused_and_forgotten() -> None:
    talked = conversation(EchoLLM(max_model_len=60))
    written, said, failed = held(talked, "one", "x" * 60, "two")
    assert failed
    assert written == "one\ntwo\n"
    assert said == ["headrace: the conversation fills the context of 60 tokens; /clear begins anew"]
    with pytest.raises(RequestError):
        list(talked.answer("x" * 60))


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    def interrupt(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    talked = conversation(EchoLLM(on_step=interrupt))
    with stoppable_answers() as stopped:
        written, _, _ = held(talked, "abcdefgh", "xy", stopped=stopped)
    assert written == "abcd\nxy\n"


def test_a_second_ctrl_c_before_the_first_is_seen_ends_the_program() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable_answers():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
