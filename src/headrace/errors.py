"""Every error that Headrace raises on purpose.

    HeadraceError
    ├── UsageError                 the user's mistake: the CLI prints one line and exits with 2
    │   ├── OptionError            a value or a combination of options that cannot be
    │   ├── PlatformError          an operating system or device that is not there
    │   ├── BudgetError            the memory that was given does not hold what was asked
    │   ├── DiskSpaceError         a folder that is full or cannot be written
    │   ├── UnsupportedModelError  an architecture that cannot be run exactly
    │   └── CheckpointError        files that are missing, damaged or not for this model
    │       ├── CheckpointNotFoundError
    │       ├── CorruptCheckpointError
    │       ├── UnsafeCheckpointError
    │       ├── UnsupportedCheckpointError
    │       └── WeightMismatchError
    ├── RequestError               one request's or row's mistake; the others go on
    └── SweepError                 a sweep failed; every row is as it was before it

A message says what failed with its value, what was expected, and what to do.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of every error below."""


class UsageError(HeadraceError):
    """Something that the user can put right before trying again."""


class OptionError(UsageError):
    """An option has a value, or a combination of options a meaning, that cannot be."""


class PlatformError(UsageError):
    """The operating system or the device cannot do what was asked."""


class BudgetError(UsageError):
    """The memory that was given is too small; the message says how much would do."""


class DiskSpaceError(UsageError):
    """A folder that Headrace was to write into is full, or may not be written."""


class UnsupportedModelError(UsageError):
    """The architecture cannot be run exactly, so it is not run at all."""


class CheckpointError(UsageError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """No checkpoint where the user pointed, on disk or on the hub."""


class CorruptCheckpointError(CheckpointError):
    """A file is truncated or its header contradicts itself or the file."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle would have run code, or a link leads out of the checkpoint's folder."""


class UnsupportedCheckpointError(CheckpointError):
    """A format that this version does not read (GGUF, AWQ, GPTQ, FP8)."""


class WeightMismatchError(CheckpointError):
    """Tensors are missing, unexpected or of another shape than config.json says, or the tokenizer does not fit."""


class RequestError(HeadraceError):
    """One request cannot be served; it never ends the engine.

    Attributes:
        code: machine-readable, as in OpenAI's error objects (`context_length_exceeded`, ...).
        param: the field of the request at fault, if it is one.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class SweepError(HeadraceError):
    """A sweep failed and was unwound: KV, state and rows are as they were before it."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Returns what an error of another library says as one line of at most `limit` characters; never nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else f"{words[: limit - 3]}..."
