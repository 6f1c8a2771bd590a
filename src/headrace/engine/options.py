"""What a caller may choose about an engine. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from headrace.errors import OptionError

LoadFormat = Literal["auto", "dummy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """See `LLM` for each; None leaves a choice to the engine."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    disk: str | None = None
    disk_bytes_per_second: float | None = None
    load_format: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_micro_batches: int = 1
    seed: int = 0
    enable_prefix_caching: bool = True
    chat_template: Path | str | None = None

    def __post_init__(self) -> None:
        _check_choice("load_format", self.load_format, get_args(LoadFormat))
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_micro_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; expected at least 1")
        if self.disk_bytes_per_second is not None and self.disk_bytes_per_second <= 0:
            raise OptionError(f"disk_bandwidth is {self.disk_bytes_per_second}; expected something like 1GB/s")
        if self.max_model_len == 1:
            raise OptionError("max_model_len is 1; expected at least 2: one token of prompt and one of answer")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
