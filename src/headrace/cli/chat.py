"""`headrace chat`: a conversation, in a terminal or one message per line of stdin."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from headrace.cli.options import (
    add_common_options,
    add_model_options,
    add_sampling_options,
    describe_sampling,
    open_model,
    sampling_params,
)
from headrace.cli.parsing import did_you_mean
from headrace.errors import OptionError, RequestError

if TYPE_CHECKING:
    from types import FrameType

    from headrace.engine.interface import LanguageModel
    from headrace.models.chat import ChatMessage
    from headrace.sampling.parameters import SamplingParams

SUMMARY = "talk with a model"
DESCRIPTION = """
A conversation with a chat model. In a terminal: /help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves. From
a pipe, every line of stdin is one message of the conversation, and only the answers go to stdout.
"""
EPILOG = """
headrace chat --model demo
"""

HELP = """\
/clear           forget the conversation
/system TEXT     set the system message, and forget the conversation; without TEXT, there is none
/exit            leave (also /quit, Ctrl-D)
/help            this list
//text           say "/text" to the model
Ctrl-C           stop the answer"""
COMMANDS = ("/clear", "/system", "/exit", "/quit", "/help")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens_default="the rest of the context")
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Talks until the user leaves, and returns the exit status."""
    params = sampling_params(args)
    interactive = sys.stdin.isatty()
    with open_model(args, expected_rows=1) as model:
        if not model.tokenizer.has_chat_template:
            raise OptionError(
                f"{model.model_name} has no chat template, so it cannot chat; give --chat-template FILE, or use "
                "headrace generate"
            )
        if not args.quiet:
            room = max(1, model.max_model_len - 1)
            sampling = params.resolve(model.defaults, default_max_tokens=room, room=room)
            max_tokens = str(args.max_tokens or f"the rest of the context ({model.max_model_len} tokens)")
            _say(model.description)
            _say(describe_sampling(sampling, max_tokens=max_tokens))
            if interactive:
                _say("/help shows the commands")
        conversation = Conversation(model=model, params=params, system=args.system)
        with stoppable_answers() if interactive else contextlib.nullcontext(_never) as stopped:
            lines = _typed_lines() if interactive else _piped_lines()
            failed = talk(conversation, lines, write=_write, say=_say, stopped=stopped)
    return 1 if failed and not interactive else 0


@dataclass(kw_only=True)
class Conversation:
    """What was said so far, and how the model goes on.

    Attributes:
        system: the system message, if there is one.
        turns: user and assistant messages, in turn.
    """

    model: LanguageModel
    params: SamplingParams
    system: str | None = None
    turns: list[ChatMessage] = field(default_factory=list)

    def answer(self, message: str) -> Generator[str, None, None]:
        """Yields the answer to `message` as it comes, and remembers both; what was yielded, when it is closed early.

        Raises:
            RequestError: the conversation fills the context. It is then as it was before.
        """
        turns: list[ChatMessage] = [*self.turns, {"role": "user", "content": message}]
        system: list[ChatMessage] = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *turns]
        room = self.model.max_model_len - len(self.model.tokenizer.encode_chat(messages))
        if room < 1:
            raise RequestError(
                f"the conversation fills the context of {self.model.max_model_len} tokens; /clear begins anew",
                code="context_length_exceeded",
                param="messages",
            )
        max_tokens = min(room, self.params.max_tokens or room)
        params = replace(self.params, max_tokens=max_tokens, min_tokens=min(self.params.min_tokens, max_tokens))
        said: list[str] = []
        pieces = self.model.stream_chat(messages, params)
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    said.append(piece.text)
                    yield piece.text
        finally:
            if said:
                self.turns = [*turns, {"role": "assistant", "content": "".join(said)}]

    def clear(self) -> None:
        """Forgets what was said, not the system message."""
        self.turns = []


def talk(
    conversation: Conversation,
    lines: Iterable[str],
    *,
    write: Callable[[str], None],
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> bool:
    """Answers every line until there are no more or one says `/exit`. Returns whether a line could not be answered.

    Args:
        write: takes the pieces of answers, and a newline after each answer.
        say: takes what is not an answer, a line at a time.
        stopped: asked after every piece; true ends the answer.
    """
    failed = False
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        if not command:
            continue
        if re.fullmatch(r"/[a-z]*", command):
            if command in ("/exit", "/quit"):
                break
            _obey(conversation, command, rest.strip(), say)
            continue
        message = line.strip().removeprefix("/") if line.strip().startswith("//") else line
        try:
            with contextlib.closing(conversation.answer(message)) as pieces:
                for piece in pieces:
                    write(piece)
                    if stopped():
                        say("\n(stopped)")
                        break
            write("\n")
        except RequestError as error:
            failed = True
            say(f"headrace: {error}")
    return failed


def _obey(conversation: Conversation, command: str, rest: str, say: Callable[[str], None]) -> None:
    match command:
        case "/clear":
            conversation.clear()
            say("(the conversation is forgotten)")
        case "/system":
            conversation.system = rest or None
            conversation.clear()
            say("(a new conversation, with this system message)" if rest else "(a new conversation, without one)")
        case "/help":
            say(HELP)
        case _:
            say(f"unknown command {command}{did_you_mean(command, COMMANDS)}; /help shows them all")


@contextlib.contextmanager
def stoppable_answers() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C a request, which the function it yields tells once; a second one, unread, raises.

    So an answer ends between two of its tokens, and never in the middle of a sweep.
    """
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    def stopped() -> bool:
        return bool(requests) and bool(requests.pop())

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def _never() -> bool:
    return False


def _typed_lines() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it gives input() its line editing)
    while True:
        try:
            with _raising_interrupts():
                line = input("> ")
        except EOFError:
            _say("")
            return
        except KeyboardInterrupt:
            _say("\n(/exit or Ctrl-D leaves)")
            continue
        yield line


@contextlib.contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Ctrl-C raises while the user types."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _piped_lines() -> Iterator[str]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise OptionError(f"line {number} of stdin is not UTF-8") from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(message: str) -> None:
    print(message, file=sys.stderr)
