"""Cuts a model's weights into the parts that are streamed: layers, their experts one by one, pieces of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from headrace.engine.ring_sizes import RingSizes
from headrace.executor.image_sources import Expert, ImageKey
from headrace.models.brought_experts import find_experts
from headrace.models.layer_image import LayerImage, expert_images, layer_image, row_images
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import ParameterSource, WeightMap
from headrace.schedule.steps import Point


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedParts:
    """The images of all parts that may be streamed.

    Attributes:
        images: of layers without their experts, and of the head, in order.
        experts: of each layer that has experts, in their order.
    """

    images: dict[Point, LayerImage]
    experts: dict[int, tuple[LayerImage, ...]]

    @property
    def num_head_parts(self) -> int:
        """How many pieces the head is in."""
        return sum(point.kind == "head" for point in self.images)

    def sizes(self, size: Callable[[LayerImage], int]) -> RingSizes:
        """Returns what streaming takes of memory in which images have a certain size."""
        return RingSizes.of(
            (size(own), [size(image) for image in experts])
            for own, *experts in ([image for _, image in self.of(point)] for point in self.images)
        )

    def file_bytes(self, points: Iterable[Point]) -> int:
        """Returns what the weights of `points` take where they lie as in their files."""
        return sum(image.num_bytes for point in points for _, image in self.of(point))

    def of(self, point: Point) -> Iterator[tuple[ImageKey, LayerImage]]:
        """Yields the images of a point's weights: its own, and those of its experts."""
        yield point, self.images[point]
        if point.kind == "layer":
            for index, image in enumerate(self.experts.get(point.layer, ())):
                yield Expert(point.layer, index), image


def cut_into_parts(model: PreTrainedModel, weights: WeightMap) -> StreamedParts:
    """Lays out all of them; every parameter can be read."""
    layers, experts = {}, {}
    for layer, (own, merged) in split_layers(model, weights).items():
        layers[layer] = layer_image(f"layer {layer}", own)
        if merged:
            experts[layer] = expert_images(layer, merged)
    heads = row_images("head", _head_sources(weights), max(image.num_bytes for image in layers.values()))
    images = {Point("layer", layer): image for layer, image in layers.items()}
    images |= {Point("head", index): image for index, image in enumerate(heads)}
    return StreamedParts(images=images, experts=experts)


def split_layers(
    model: PreTrainedModel, weights: WeightMap
) -> dict[int, tuple[list[ParameterSource], list[ParameterSource]]]:
    """Returns, for each layer, what it has without its experts, and the merged parameters of these."""
    found = find_experts(model)
    split = {}
    for layer in range(weights.num_layers):
        names = frozenset(found[layer].parameters) if layer in found else frozenset()
        sources = weights.in_group(layer)
        merged = [source for source in sources if source.name in names]
        split[layer] = ([source for source in sources if source.name not in names], merged)
    return split


def _head_sources(weights: WeightMap) -> list[ParameterSource]:
    """The head's own parameters; where its matrix is tied to the embedding's, that one under the head's name."""
    own = list(weights.in_group("head"))
    tied = [
        replace(weights.parameters[source], name=name)
        for name, source in weights.tied.items()
        if weights.parameters[source].group == "embedding"
    ]
    return own + tied
