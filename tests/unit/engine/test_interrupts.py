"""Ctrl-C is held back, not lost."""

from __future__ import annotations

import signal
import threading

import pytest

from headrace.engine.interrupts import held_interrupts


def test_an_interrupt_takes_effect_at_the_end_of_the_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_without_an_interrupt_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_inside_comes_before_the_interrupt() -> None:
    with pytest.raises(ValueError, match="first"), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("first")


def test_another_thread_may_use_it() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with held_interrupts():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
