"""Rewrites weights of a loaded model where they lie, so that products of few tokens run at the memory's speed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch._C import DisableTorchFunction

from headrace.kernels.interleaving import INTERLEAVED_OUTPUTS, can_be_interleaved, interleave
from headrace.kernels.library import library
from headrace.kernels.linear import linear
from headrace.models.embedding_rows import InterleavedEmbedding
from headrace.models.layers import linear_layers
from headrace.models.transformers_api import PreTrainedModel

_WEIGHT_OF = re.compile(r"\b(\w+)\.weight\b(?!\.(?:dtype|device)\b)")


class InterleavedLinear(nn.Module):
    """Takes the place of a `torch.nn.Linear`: the same results, bit for bit.

    Attributes:
        weight: what `interleave` makes of (outputs, inputs).
        bias: (outputs), or None.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Rewrites the weight of `layer`, which is of no use any more."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(interleave(layer.weight.data), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """(..., inputs) -> (..., outputs) in the same dtype."""
        (output,) = multiply(input, [self])
        return output

    def extra_repr(self) -> str:
        """As torch's own modules describe themselves."""
        return f"{self.in_features} -> {self.out_features}, interleaved by {INTERLEAVED_OUTPUTS}"


def multiply(input: Tensor, layers: Sequence[InterleavedLinear]) -> list[Tensor]:
    """Returns what each of `layers`, of one number of inputs and one dtype, makes of (..., inputs), in one go."""
    found = library()
    assert found is not None, "only where it is are weights interleaved"
    with DisableTorchFunction():  # the products of other layers are not looked for in here, which takes time
        return linear(found, input, [(layer.weight, layer.bias) for layer in layers], are_interleaved=True)


def interleave_layers(model: PreTrainedModel) -> None:
    """Interleaves what linear layers within decoder layers hold, and the head.

    Layers stay whose weight is shared, or of a shape that does not fit, or whose weight the model's code names: it may
    read its numbers. An embedding that shares its matrix with the head looks its rows up in what is interleaved.
    """
    try:
        read = _named_in_code(model)
    except (OSError, TypeError):  # code that cannot be seen may read any weight
        return
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    places = {module: name for name, module in model.named_modules()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]
    for name, layer in [*linear_layers(model), (places.get(head, ""), head)]:
        if type(layer) is not nn.Linear or _last(name) in read or not can_be_interleaved(layer.weight):
            continue
        others = [other for other in names[layer.weight] if other != f"{name}.weight"]
        if not others:
            model.set_submodule(name, InterleavedLinear(layer))
        elif layer is head and others == [f"{places[embedding]}.weight"] and _last(places[embedding]) not in read:
            interleaved = InterleavedLinear(layer)
            model.set_submodule(name, interleaved)
            model.set_input_embeddings(InterleavedEmbedding(embedding, interleaved.weight.data))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _named_in_code(model: PreTrainedModel) -> set[str]:
    """Returns every NAME in a NAME.weight, but for its dtype and device, in the code of the model's modules."""
    kinds: Iterable[type[nn.Module]] = {type(module) for module in model.modules()}
    return {name for kind in kinds for name in _WEIGHT_OF.findall(_code(kind))}


def _code(kind: type[nn.Module]) -> str:
    """What a module runs; of a model not what it draws its first weights with."""
    return inspect.getsource(kind.forward if issubclass(kind, PreTrainedModel) else kind)
