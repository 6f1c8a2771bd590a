"""Norms, gated MLPs and rotations of transformers are known by their code, and compute what they did before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace.kernels.library import usable
from headrace.kernels.pointwise import Activation, NormForm
from headrace.models.adapters import pointwise
from headrace.models.transformers_api import PreTrainedModel
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

KNOWN = {
    "llama": (NormForm.WEIGHT_TIMES_ROUNDED, Activation.SILU),
    "qwen2": (NormForm.WEIGHT_TIMES_ROUNDED, Activation.SILU),
    "olmo2": (NormForm.WEIGHT_TIMES_NUMBER, Activation.SILU),
    "gemma2": (NormForm.ONE_PLUS_WEIGHT, Activation.GELU_TANH),
    "gemma3_text": (NormForm.ONE_PLUS_WEIGHT, Activation.GELU_TANH),
}


def modules(model: PreTrainedModel, kind: str) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith(kind)]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapted_module_computes_what_it_did_before(name: str, dtype: torch.dtype) -> None:
    model = make_tiny_model(name, dtype=dtype)
    form, activation = KNOWN[name]
    norms, mlps = modules(model, "RMSNorm"), modules(model, "MLP")
    assert norms and mlps
    for module in (*norms, *mlps):
        width = module.weight.shape[0] if module in norms else module.gate_proj.in_features
        hidden = torch.randn(1, 11, width, dtype=dtype)
        with torch.inference_mode():
            before = module(hidden)
            assert pointwise.adapt(module)
            after = module(hidden)
        scale = before.abs().max()
        assert after.dtype is dtype and (after - before).abs().max() <= 8 * torch.finfo(dtype).eps * scale
    assert all(module.headrace_form is form for module in norms)
    assert all(module.headrace_activation is activation for module in mlps)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_a_changed_rotation_gives_the_same_logits_to_the_last_bit(name: str) -> None:
    model, tokens = make_tiny_model(name), torch.arange(3, 20)[None]
    attention = modules(model, "Attention")
    with torch.inference_mode():
        before = model(tokens).logits
        assert attention and all(pointwise.adapt(module) for module in attention)
        assert torch.equal(model(tokens).logits, before)
        assert torch.equal(make_tiny_model(name)(tokens).logits, before), "the class has changed"
    assert all("apply_rotary_pos_emb" in module.forward.__globals__ for module in attention)
    assert all(type(module).forward.__globals__ is not module.forward.__globals__ for module in attention)


@pytest.mark.parametrize("name", ["gpt2", "opt", "mamba2", "bloom"])
def test_other_modules_are_left_alone(name: str) -> None:
    model = make_tiny_model(name)
    adapted = [type(module).__name__ for module in model.modules() if pointwise.adapt(module)]
    assert set(adapted) <= {"Mamba2RMSNorm"}


def test_what_the_library_does_not_know_runs_as_before() -> None:
    (norm, *_), (mlp, *_) = (modules(make_tiny_model("llama"), kind) for kind in ("RMSNorm", "MLP"))
    hidden = torch.randn(1, 3, 64, dtype=torch.float64)
    norm.double(), mlp.double()
    expected = norm(hidden), mlp(hidden)
    assert pointwise.adapt(norm) and pointwise.adapt(mlp)
    assert torch.equal(norm(hidden), expected[0]) and torch.equal(mlp(hidden), expected[1])
