"""A model that somebody else has loaded: whether it can be taken over, and how it is given back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from headrace.checkpoint.safetensors_writer import WRITABLE_DTYPES
from headrace.errors import OptionError, UnsupportedModelError
from headrace.models.skeleton import outline_of
from headrace.models.transformers_api import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    ForeignModule,
    PreTrainedModel,
    transformers_version,
)

_COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
_LISTED = 4


def check_loaded_class(model: object) -> PreTrainedModel:
    """Returns `model` if it is a causal language model of transformers, else raises.

    Raises:
        UnsupportedModelError: it is anything else, or wrapped in something else.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no model of transformers {transformers_version}; expected what "
            "AutoModelForCausalLM.from_pretrained returns; take the model out of what is around it (torch.compile: "
            "`model._orig_mod`; PEFT: `model.merge_and_unload()`; DataParallel: `model.module`)"
        )
    expected: ForeignModule = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if expected is None or type(model) is not expected:
        instead = "no causal language model" if expected is None else f"{expected.__name__}, unchanged"
        raise UnsupportedModelError(
            f"{type(model).__name__} is not what Headrace runs; of the configuration {type(model.config).__name__}, "
            f"transformers has {instead}; load the weights with AutoModelForCausalLM"
        )
    return model


def check_loaded_weights(model: PreTrainedModel) -> tuple[torch.device, torch.dtype]:
    """Returns the one device of a model, and the dtype of most of its weights.

    Raises:
        OptionError: weights are on the meta device, on several devices, or of a dtype that is not computed in.
        UnsupportedModelError: weights are quantized, or modules are not those that the configuration describes.
    """
    tensors = dict(_tensors(model))
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) != 1 or torch.device("meta") in devices:
        names = ", ".join(sorted(str(device) for device in devices))
        raise OptionError(
            f"the model is on {names}; expected all of it on one device, with its values; load it without device_map "
            "(or offloading), or with one device for all; weights beyond memory are Headrace's to stream"
        )
    num_bytes: Counter[torch.dtype] = Counter()
    for tensor in model.parameters():
        num_bytes[tensor.dtype] += tensor.nbytes
    dtype = num_bytes.most_common(1)[0][0]
    _check_modules(model, dtype if dtype in _COMPUTED else torch.float32)
    unknown = [
        f"{name} ({type(tensor.data).__name__}, {str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in tensors.items()
        if type(tensor.data) is not Tensor or str(tensor.dtype).removeprefix("torch.") not in WRITABLE_DTYPES
    ]
    if dtype not in _COMPUTED or unknown:
        raise OptionError(
            f"the weights are {str(dtype).removeprefix('torch.')}{_among(unknown)}; expected plain tensors of float32, "
            "bfloat16 or float16; call `model.float()` or `model.bfloat16()`"
        )
    return devices.pop(), dtype


class AsItWas:
    """Remembers a model's modules and configurations, but none of its weights, to undo what a takeover changes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = [(module, dict(vars(module)), dict(module._modules)) for module in model.modules()]
        configs = {id(config): config for module in model.modules() if (config := vars(module).get("config"))}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]

    def restore(self) -> None:
        """Puts every module and attribute back; tensors stay what and where they are."""
        for module, attributes, children in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
        for config, attributes in self._configs:
            vars(config).clear()
            vars(config).update(attributes)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """All parameters, and the buffers that are saved with them."""
    return iter(model.state_dict(keep_vars=True).items())


def _check_modules(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Compares the modules with those that transformers builds: what differs is not known to run exactly."""
    quantizer: ForeignModule = getattr(model, "hf_quantizer", None)
    outline = outline_of(copy.deepcopy(model.config), dtype)
    expected, found = _kinds(outline), _kinds(model)
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    if quantizer is None and not names:
        return
    shown = [f"{name or 'the model'} ({found.get(name, 'missing')})" for name in names]
    raise UnsupportedModelError(
        f"{type(model).__name__} has quantized or changed modules{_among(shown)}; expected those that its "
        "configuration describes, with plain weights; merge adapters (`merge_and_unload`), `dequantize`, or load it "
        "without quantization_config"
    )


def _kinds(model: nn.Module) -> dict[str, str]:
    """Every module's class and the shapes of its own parameters, by name."""
    return {name: " ".join([type(module).__name__, *_shapes(module)]) for name, module in model.named_modules()}


def _shapes(module: nn.Module) -> list[str]:
    return [str(list(own.shape)) for own in module._parameters.values() if own is not None]


def _among(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f", among them {', '.join(names[:_LISTED])}{more}" if names else ""
