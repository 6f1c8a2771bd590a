"""Which models in memory can be taken over, and that they can be given back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

from headrace.errors import OptionError, UnsupportedModelError
from headrace.models.loaded_model import AsItWas, check_loaded_class, check_loaded_weights
from headrace.models.observation import layer_table
from headrace.models.takeover import EngineModel
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model


class Changed(LlamaForCausalLM):
    """A model with code of its own."""


class Linear4bit(nn.Linear):
    """Stands for any module that a quantization puts in the place of a linear one."""


class Other(Tensor):
    """A tensor that is not what it seems."""


@pytest.mark.parametrize("name", TINY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_as_transformers_makes_them_are_taken(name: str, dtype: torch.dtype) -> None:
    model = check_loaded_class(make_tiny_model(name, dtype=dtype))
    assert check_loaded_weights(model) == (torch.device("cpu"), dtype)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize(
    "around", [nn.Sequential, partial(torch.compile, backend="eager"), str], ids=["wrapped", "compiled", "a name"]
)
def test_what_is_no_model_of_transformers_is_refused(around: type) -> None:
    with pytest.raises(UnsupportedModelError, match=r"is no model of transformers .* take the model out"):
        check_loaded_class(around(make_tiny_model("llama")))


def test_another_kind_of_model_is_refused() -> None:
    model = AutoModelForSequenceClassification.from_config(make_tiny_model("llama").config)
    with pytest.raises(UnsupportedModelError, match="transformers has LlamaForCausalLM, unchanged"):
        check_loaded_class(model)


def test_a_class_of_one_s_own_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Changed is not what Headrace runs"):
        check_loaded_class(Changed(make_tiny_model("llama").config))


def test_weights_that_are_not_there_are_refused() -> None:
    model = make_tiny_model("llama")
    model.model.layers[1].to("meta")
    with pytest.raises(OptionError, match="the model is on cpu, meta; expected all of it on one device"):
        check_loaded_weights(model)
    with pytest.raises(OptionError, match="the model is on meta"):
        check_loaded_weights(model.to("meta"))


def test_changed_modules_are_refused_by_name() -> None:
    model = make_tiny_model("llama")
    model.lm_head = Linear4bit(64, 97, bias=False)
    with pytest.raises(UnsupportedModelError, match=r"quantized or changed .* lm_head \(Linear4bit \[97, 64\]\)"):
        check_loaded_weights(model)


def test_added_modules_are_refused_by_name() -> None:
    model = make_tiny_model("llama")
    model.model.layers[0].mlp.up_proj.adapter = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.adapter \(Linear \[2, 2\] \[2\]\).*merge_and_unload"):
        check_loaded_weights(model)


def test_a_model_that_knows_its_quantizer_is_refused() -> None:
    model = make_tiny_model("llama")
    model.hf_quantizer = object()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has quantized or changed modules; expected"):
        check_loaded_weights(model)


def test_other_dtypes_and_tensors_of_other_kinds_are_refused() -> None:
    with pytest.raises(OptionError, match=r"the weights are float64, among them model\.embed_tokens.weight"):
        check_loaded_weights(make_tiny_model("llama").double())
    model = make_tiny_model("llama")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.as_subclass(Other))
    with pytest.raises(OptionError, match=r"among them lm_head.weight \(Other, float32\)"):
        check_loaded_weights(model)


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_a_takeover_is_undone(name: str) -> None:
    model = make_tiny_model(name)
    ids = torch.arange(3, 20)[None]
    before, names = model(ids).logits, list(model.state_dict())
    as_it_was = AsItWas(model)
    EngineModel(model, layer_table(model.config))
    assert list(model.state_dict()) != names
    as_it_was.restore()
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, before)
