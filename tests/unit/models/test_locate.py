"""Where the model that a user names lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import CheckpointNotFoundError
from headrace.models.locate import locate_model


def test_demo_is_the_model_in_the_package(demo_model: str) -> None:
    assert (locate_model(demo_model) / "config.json").is_file()


def test_a_directory_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate_model(str(tmp_path)) == tmp_path


def test_a_directory_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        locate_model(str(tmp_path / "nothing"))
