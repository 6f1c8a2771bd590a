"""A transfer is complete with its last part, and raises the first error of any."""

from __future__ import annotations

import pytest

from headrace.storage.transfer import Transfer


def test_a_transfer_of_nothing_is_complete() -> None:
    transfer = Transfer("nothing", 0)
    assert transfer.is_complete
    transfer.wait()


def test_a_transfer_is_complete_with_its_last_part() -> None:
    transfer = Transfer("two", 2)
    transfer.finish_part()
    assert not transfer.is_complete
    transfer.finish_part()
    transfer.wait()


def test_the_first_error_is_raised_once_all_parts_are_over() -> None:
    transfer = Transfer("three", 3)
    transfer.finish_part(OSError("first"))
    transfer.finish_part(OSError("second"))
    assert not transfer.is_complete
    transfer.finish_part()
    transfer.settle()
    with pytest.raises(OSError, match="first"):
        transfer.wait()
