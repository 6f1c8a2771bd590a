"""The demo model: a tiny Llama, trained from scratch, that turns order and appointment notes into JSON."""

from __future__ import annotations

from pathlib import Path


def demo_model_path() -> Path:
    """Return the directory of the packaged checkpoint; nothing is downloaded."""
    return Path(__file__).parent / "model"
