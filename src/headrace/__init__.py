"""Headrace runs large language models on machines too small to hold them.

    from headrace import LLM, SamplingParams

    with LLM("demo") as llm:
        outputs = llm.generate(["Once upon a time"], SamplingParams(max_tokens=32))

Importing this package is quick and does not import torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace import compat, errors
    from headrace.engine.llm import LLM
    from headrace.engine.outputs import CompletionOutput, OutputPiece, RequestOutput
    from headrace.engine.requests import GenerationRequest
    from headrace.engine.wrapped import wrap
    from headrace.models.chat import ChatOptions
    from headrace.sampling.parameters import SamplingParams
    from headrace.sampling.structured_outputs import StructuredOutputs

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "ChatOptions",
    "CompletionOutput",
    "GenerationRequest",
    "OutputPiece",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
    "compat",
    "errors",
    "wrap",
]

_MODULE_OF = {
    "ChatOptions": "headrace.models.chat",
    "CompletionOutput": "headrace.engine.outputs",
    "GenerationRequest": "headrace.engine.requests",
    "LLM": "headrace.engine.llm",
    "OutputPiece": "headrace.engine.outputs",
    "RequestOutput": "headrace.engine.outputs",
    "SamplingParams": "headrace.sampling.parameters",
    "StructuredOutputs": "headrace.sampling.structured_outputs",
    "wrap": "headrace.engine.wrapped",
}
_SUBMODULES = ("compat", "errors")


def __getattr__(name: str) -> object:
    """Imports an exported name on its first use (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"headrace.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
