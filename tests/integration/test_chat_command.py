"""`headrace chat` through a pipe and in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.commands import headrace

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def model_words(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a small model that tells stories, with a chat template that just tells them on."""
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(TEMPLATE)
    model = shared_data / "models" / "stories260k-hf"
    return ["--model", str(model), "--chat-template", str(template), "--dtype", "float32"]


def test_every_line_of_a_pipe_is_answered_on_stdout(model_words: list[str]) -> None:
    ran = headrace(
        "chat", *model_words, "--max-tokens", "8", stdin=b"Once upon a time\n/clear\nOnce upon a time\n/exit\nnever\n"
    )
    assert ran.status == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first == second and first
    assert "max_tokens 8" in ran.stderr


def test_a_message_that_does_not_fit_makes_the_status_1(model_words: list[str]) -> None:
    ran = headrace("chat", *model_words, "--max-model-len", "40", "--quiet", stdin=b"Lily " * 40)
    assert (ran.status, ran.stdout) == (1, b"")
    assert ran.stderr == "headrace: the conversation fills the context of 40 tokens; /clear begins anew\n"


def test_a_model_without_a_chat_template_is_refused(model_words: list[str]) -> None:
    ran = headrace("chat", "--model", model_words[1], stdin=b"Hi\n")
    assert ran.status == 2
    assert ran.stderr.startswith("headrace: ") and "--chat-template FILE" in ran.stderr


def test_a_terminal_has_a_prompt_and_commands_and_ctrl_d_leaves(model_words: list[str]) -> None:
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "headrace", "chat", *model_words, "--max-tokens", "5"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        seen = wait_for(master, b"> ", b"")
        assert b"/help shows the commands" in seen
        os.write(master, b"/help\n")
        seen = wait_for(master, b"stop the answer\r\n> ", b"")
        os.write(master, b"Once upon a time\n")
        seen = wait_for(master, b"\n> ", b"", after=b"Once upon a time\r\n")
        os.write(master, b"\x04")
        assert program.wait(timeout=60) == 0
    finally:
        program.kill()
        program.wait()
        os.close(master)


def wait_for(terminal: int, text: bytes, seen: bytes, *, after: bytes = b"") -> bytes:
    """Reads the terminal until `text` comes after `after`."""
    deadline = time.monotonic() + 120
    while text not in seen.partition(after)[2] if after else text not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096)
    return seen
