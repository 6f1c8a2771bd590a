"""Device and dtype as users name them."""

from __future__ import annotations

import platform

import torch

from headrace.errors import OptionError, PlatformError
from headrace.kernels.library import library

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises:
        OptionError: the name means nothing here.
        PlatformError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise PlatformError(f"device {name!r}: this machine has {count} usable CUDA devices; try --device cpu")
    return device


def choose_dtype(name: str) -> torch.dtype | None:
    """Returns the dtype of a name; None for `auto`, the checkpoint's own.

    Raises:
        OptionError: the name means nothing here.
    """
    if name != "auto" and name not in _DTYPES:
        raise OptionError(f"dtype is {name!r}; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES.get(name)


def dtype_of_config(config: dict[str, object]) -> torch.dtype:
    """Returns the dtype that a configuration states, where there are no weights to ask; float32 where it is silent."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return _DTYPES.get(name, torch.float32)


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` is a CPU that multiplies this half precision without instructions for it.

    Measured with torch: on a Xeon with AVX-512 but no bf16 51 GFLOP/s in bfloat16 against 236 in float32, on a Zen 4
    without fp16 44 in float16 against 430 in bfloat16.
    """
    if device.type != "cpu" or dtype is torch.float32 or platform.machine() != "x86_64":
        return False
    if dtype is torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def slow_dtype_note(dtype: torch.dtype, device: torch.device) -> str:
    """Returns a hint where float32 would be faster."""
    if not is_slow(dtype, device) or library() is not None:
        return ""
    return (
        "; this CPU has no instructions for it, and the C++ library is not used: with few rows --dtype float32 is "
        "faster, in twice the memory"
    )
