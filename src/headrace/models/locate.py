"""Where the model that a user names lies on disk."""

from __future__ import annotations

from pathlib import Path

from headrace.checkpoint.source import resolve_checkpoint
from headrace.demo import demo_model_path


def locate_model(name: str, revision: str | None = None) -> Path:
    """Returns the folder of `name`: the packaged model for `demo`, a directory, or a download from the hub.

    Raises:
        CheckpointNotFoundError: there is no such model.
    """
    return demo_model_path() if name == "demo" else resolve_checkpoint(name, revision)
