"""What a caller may choose about an engine. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from headrace.compression.kv_codec import KV_CODECS, KVCodec
from headrace.errors import OptionError

LoadFormat = Literal["auto", "dummy"]
Quantization = Literal["none", "int8", "int8-outliers", "int4"]
KVCacheDtype = Literal["auto", "int8", "int4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """See `LLM` for each; None leaves a choice to the engine."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    allow: tuple[str, ...] = ()
    device: str = "auto"
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    disk: str | None = None
    disk_bytes_per_second: float | None = None
    load_format: str = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_micro_batches: int = 1
    seed: int = 0
    enable_prefix_caching: bool = True
    speculate: bool = True
    trust_remote_code: bool = False
    typical_row_tokens: int | None = None
    expected_rows: int | None = None
    weights_on_device: float | None = None
    kv_on_device: float | None = None
    weights_on_host: float | None = None
    kv_on_host: float | None = None
    activations_on_device: float | None = None
    attend_on_host: bool | None = None
    pin_memory: bool = True
    chat_template: Path | str | None = None
    trace: Path | str | None = None
    overlap: bool = True

    @property
    def asks_to_stream(self) -> bool:
        """Whether not all weights shall be on the device, even if they fit."""
        return self.weights_on_device is not None and self.weights_on_device < 1

    @property
    def kv_codec(self) -> KVCodec | None:
        """What keys and values are kept in; None: in the model's dtype."""
        return KV_CODECS.get(self.kv_cache_dtype)

    def __post_init__(self) -> None:
        _check_choice("load_format", self.load_format, get_args(LoadFormat))
        _check_choice("quantization", self.quantization, get_args(Quantization))
        for name in self.allow:
            _check_choice("allow", name, get_args(Quantization)[1:])
        if self.allow and self.quantization != "none":
            raise OptionError(
                f"quantization is {self.quantization} and allow is {', '.join(self.allow)}; give one of the two"
            )
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KVCacheDtype))
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "num_micro_batches",
            "typical_row_tokens",
            "expected_rows",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; expected at least 1")
        for name in (
            "weights_on_device",
            "kv_on_device",
            "weights_on_host",
            "kv_on_host",
            "activations_on_device",
        ):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise OptionError(f"{name} is {share}; expected a share from 0 to 1")
        if self.disk_bytes_per_second is not None and self.disk_bytes_per_second <= 0:
            raise OptionError(f"disk_bandwidth is {self.disk_bytes_per_second}; expected something like 1GB/s")
        if self.max_model_len == 1:
            raise OptionError("max_model_len is 1; expected at least 2: one token of prompt and one of answer")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
