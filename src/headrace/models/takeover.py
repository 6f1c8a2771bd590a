"""A transformers model under the engine: the same weights and code, but we own when layers run and what attention does.

Stand-ins take the places of embedding, layers and head, and suspend before the module that they stand for.
Attention and experts are taken over by `engine_functions`, and through `adapters` where an architecture does not use
transformers' registries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from weakref import ref

from torch import Tensor, nn

from headrace.models.adapters import (
    attn_method,
    bloom,
    counted_positions,
    falcon,
    latent,
    mpt,
    pointwise,
    rotary,
    state,
)
from headrace.models.brought_experts import find_experts
from headrace.models.engine_functions import ATTENTION_NAME, EngineCache
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.models.layers import find_layers
from headrace.models.micro_batch import MicroBatchContext, current
from headrace.models.transformers_api import ForeignModule, PreTrainedModel
from headrace.models.wanted_tokens import for_wanted
from headrace.schedule.steps import Point

_ADAPTERS: tuple[Callable[[ForeignModule], bool], ...] = (
    attn_method.adapt,
    bloom.adapt,
    counted_positions.adapt,
    falcon.adapt,
    mpt.adapt,
    pointwise.adapt,
    rotary.adapt,
    state.adapt,
)


class EngineModel:
    """A causal language model whose forward waits at the points of its layer table."""

    def __init__(self, model: PreTrainedModel, table: LayerTable, *, num_head_parts: int = 1) -> None:
        """Takes `model` over in place; its weights are neither copied nor moved.

        Args:
            num_head_parts: the output head's weights come in so many parts, each of some of its rows, one at a time.
        """
        self.table = table
        self._model = model
        take_over(model, num_head_parts)
        self._run_last_layers_for_wanted()

    @property
    def module(self) -> PreTrainedModel:
        """The model itself; its modules may be stand-ins."""
        return self._model

    def modules(self) -> Iterator[nn.Module]:
        """Yields all modules, stand-ins and those whose places they have."""
        for module in self._model.modules():
            yield module
            if isinstance(module, _StandIn):
                yield from module.__dict__["real"].modules()

    def layers(self) -> dict[int, nn.Module]:
        """Returns the decoder layers themselves, by index."""
        return {index: stand_in.__dict__["real"] for index, stand_in in self._stand_ins().items()}

    def forward(self, context: MicroBatchContext) -> Tensor:
        """Returns the logits (R, vocabulary) of the wanted tokens; runs inside a coroutine, in inference mode."""
        return run_forward(self._model, context)

    def _run_last_layers_for_wanted(self) -> None:
        keeping = [index for index, layer in enumerate(self.table.layers) if layer.memory is not None]
        last = max(keeping, default=-1)
        for index, stand_in in self._stand_ins().items():
            attends = isinstance(self.table.layers[index].memory, AttentionSpec)
            if index > last or (index == last and attends):
                stand_in.__dict__["run"] = for_wanted(stand_in.__dict__["run"], index, attends)

    def _stand_ins(self) -> dict[int, _LayerStandIn]:
        stand_ins = (module for module in self._model.modules() if isinstance(module, _LayerStandIn))
        return {stand_in.__dict__["point"].layer: stand_in for stand_in in stand_ins}


def take_over(model: PreTrainedModel, num_head_parts: int = 1) -> None:
    """Puts stand-ins and adapters into `model`, in place."""
    model.eval()  # type: ignore[no-untyped-call]
    is_latent = _adapt_modules(model)
    _name_attention(model, latent.ATTENTION_NAME if is_latent else ATTENTION_NAME)
    _number_experts(model)
    _trust_padding(model)
    _stand_in(model, num_head_parts)


def run_forward(model: PreTrainedModel, context: MicroBatchContext) -> Tensor:
    """Returns the logits (R, vocabulary) of the wanted tokens from a model that was taken over."""
    taken = _taken_by(type(model).forward)
    cache_name = next(name for name in ("past_key_values", "cache_params") if name in taken)
    arguments: dict[str, object] = {cache_name: EngineCache()}
    if "position_ids" in taken:
        arguments["position_ids"] = context.positions
    output = model(input_ids=context.token_ids, use_cache=True, logits_to_keep=context.wanted.tokens, **arguments)
    logits: Tensor = output.logits[0]
    return logits


@cache
def _taken_by(function: Callable[..., object]) -> frozenset[str]:
    """Returns the names of what `function` takes."""
    return frozenset(inspect.signature(function).parameters)


class _StandIn(nn.Module):
    """Waits at a point, then runs the module whose place it has. Reads of attributes fall through to that module."""

    def __init__(self, real: nn.Module, point: Point) -> None:
        super().__init__()
        self.__dict__["real"] = real
        self.__dict__["point"] = point

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        found: Tensor | nn.Module = getattr(self.__dict__["real"], name)
        return found

    def forward(self, *args: object, **kwargs: object) -> object:
        current().reach(self.__dict__["point"])
        return self.__dict__["real"](*args, **kwargs)


class _EmbeddingStandIn(_StandIn):
    """Waits before the embedding, and notes what comes out of it, for as long as the model keeps that."""

    def forward(self, *args: object, **kwargs: object) -> object:
        first = args[0]
        if isinstance(first, Tensor) and first.is_meta:  # Llama 4 sends tokens to where the table is, if it is anywhere
            first = current().token_ids
        result = super().forward(first, *args[1:], **kwargs)
        if isinstance(result, Tensor):
            current().embedded.append(ref(result))
        return result


class _LayerStandIn(_StandIn):
    """Waits before a layer; a micro-batch may skip the layer, once another one has shown what layers return."""

    def __init__(self, real: nn.Module, point: Point, returns: _LayerReturns) -> None:
        super().__init__(real, point)
        self.__dict__["run"] = real
        self.__dict__["returns"] = returns

    def forward(self, *args: object, **kwargs: object) -> object:
        point, returns = self.__dict__["point"], self.__dict__["returns"]
        hidden = args[0] if args else kwargs["hidden_states"]
        if point.layer in current().skipped_layers:
            return hidden if returns.num_more is None else (hidden, *[None] * returns.num_more)
        current().reach(point, hidden if isinstance(hidden, Tensor) else None)
        result = self.__dict__["run"](*args, **kwargs)
        returns.num_more = len(result) - 1 if isinstance(result, tuple) else None
        return result


@dataclass(slots=True)
class _LayerReturns:
    """What the layers of one model return: hidden states alone, or as the first of a tuple with `num_more` others."""

    num_more: int | None = None


class _HeadStandIn(_StandIn):
    """Runs the output head part by part; a part's weights are in the head's place when it is resumed there."""

    def __init__(self, real: nn.Module, num_parts: int) -> None:
        super().__init__(real, Point("head"))
        self.__dict__["num_parts"] = num_parts

    def forward(self, *args: object, **kwargs: object) -> object:
        real, logits, done = self.__dict__["real"], None, 0
        for part in range(self.__dict__["num_parts"]):
            current().reach(Point("head", part))
            rows: Tensor = real(*args, **kwargs)
            if logits is None:
                logits = rows.new_empty(*rows.shape[:-1], real.out_features)
            count = min(rows.shape[-1], real.out_features - done)  # packed weights are padded at the end
            logits[..., done : done + count] = rows[..., :count]
            done += count
        assert logits is not None
        return logits


def _stand_in(model: PreTrainedModel, num_head_parts: int) -> None:
    found, returns = find_layers(model), _LayerReturns()
    stand_ins = (_LayerStandIn(layer, Point("layer", index), returns) for index, layer in enumerate(found.layers))
    setattr(found.parent, found.attribute, nn.ModuleList(stand_ins))
    model.set_input_embeddings(_EmbeddingStandIn(model.get_input_embeddings(), Point("embedding")))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = _StandIn(head, Point("head")) if num_head_parts == 1 else _HeadStandIn(head, num_head_parts)
    model.set_output_embeddings(head)  # type: ignore[no-untyped-call]


def _name_attention(model: PreTrainedModel, name: str) -> None:
    """Chooses attention and experts after construction: some architectures look them up in tables while building."""
    for module in _with_config(model):
        module.config._attn_implementation_internal = name
        module.config._experts_implementation_internal = ATTENTION_NAME


def _with_config(model: PreTrainedModel) -> Iterator[ForeignModule]:
    return (
        module for module in model.modules() if hasattr(module.config if "config" in vars(module) else None, "to_dict")
    )


def _adapt_modules(model: PreTrainedModel) -> bool:
    """Returns whether attention is on latents."""
    num_latent = 0
    for module in model.modules():
        any(adapt(module) for adapt in _ADAPTERS)
        num_latent += latent.adapt(module)
    return num_latent > 0


def _trust_padding(model: PreTrainedModel) -> None:
    """Some models search what they are given for padding tokens, which packed rows do not have, and warn of them."""
    module: ForeignModule
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None


def _number_experts(model: PreTrainedModel) -> None:
    """Experts do not know their layer; their suspension point needs it."""
    for layer, found in find_experts(model).items():
        found.module.headrace_layer = layer
