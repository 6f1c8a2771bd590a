"""Device and dtype as users name them."""

from __future__ import annotations

import pytest
import torch

from headrace.errors import OptionError, PlatformError
from headrace.models import choices
from headrace.models.choices import choose_device, choose_dtype, dtype_of_config, is_slow, slow_dtype_note

CPU = torch.device("cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["tpu", "mps", "meta", "cuda:x", ""])
def test_a_device_that_means_nothing_here_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(PlatformError, match="this machine has 1 usable CUDA devices; try --device cpu"):
        choose_device("cuda:1")


def test_dtypes_have_the_names_of_transformers() -> None:
    named = [choose_dtype(name) for name in ("auto", "float32", "bfloat16", "float16")]
    assert named == [None, torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(OptionError, match="dtype is 'int8'; expected auto, float32, bfloat16, float16"):
        choose_dtype("int8")


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "torch.bfloat16", "torch_dtype": "float32"}, torch.bfloat16),
        ({"torch_dtype": None}, torch.float32),
        ({"torch_dtype": "float8_e4m3fn"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_configuration_s_dtype_is_the_one_it_states(config: dict[str, object], dtype: torch.dtype) -> None:
    assert dtype_of_config(config) is dtype


def test_only_half_precision_on_a_cpu_without_instructions_for_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert is_slow(torch.bfloat16, CPU)
    monkeypatch.setattr(choices, "library", lambda: None)
    assert "--dtype float32 is faster" in slow_dtype_note(torch.bfloat16, CPU)
    monkeypatch.setattr(choices, "library", lambda: "there is one, which widens weights")
    assert slow_dtype_note(torch.bfloat16, CPU) == ""
    assert not is_slow(torch.float32, CPU) and slow_dtype_note(torch.float32, CPU) == ""
    assert not is_slow(torch.bfloat16, torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not is_slow(torch.bfloat16, CPU)
