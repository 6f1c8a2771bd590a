"""Where every parameter of a skeleton comes from in a checkpoint, grouped by the part of the model it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal

import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gather import Gather
from headrace.checkpoint.packed_tensors import PackedEntry
from headrace.checkpoint.reader import RangeReader
from headrace.checkpoint.tensors import CONVERTIBLE_DTYPES, DTYPE_BYTES, TensorEntry
from headrace.compression.stored_codes import checkpoint_codec
from headrace.compression.weight_codecs import Int4Codec, Int8Codec, WeightCodec
from headrace.errors import UnsupportedCheckpointError, WeightMismatchError
from headrace.models.layers import find_layers
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_conversion import Assignment, Conversion, assign_tensors

# A decoder layer's index, or one of the parts around the layers. "head" is empty when it shares the embedding's weight.
Group = int | Literal["embedding", "head", "rest"]

# Tensors of old checkpoints that newer code computes instead: rotary tables, position numbers, causal masks; and the
# parts for images of a checkpoint whose text part is run alone.
_HARMLESS = (
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"(^|\.)position_ids$",
    r"\.(attn|attention|self_attention)\.(bias|masked_bias)$",
    r"^(model\.)?(vision_model|visual|multi_modal_projector)\.",
)
_LISTED_FAULTS = 8
_COMPARED_BYTES = 8 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomFill:
    """A parameter without a checkpoint: random numbers that depend on this seed and the parameter's name."""

    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The weight of a linear layer that its checkpoint has in fewer bits."""

    entry: PackedEntry
    codec: Int8Codec | Int4Codec


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The weight of a linear layer in fewer bits, as layers compute with it.

    Attributes:
        original: where the weight itself comes from.
        transposed: whether it is (inputs, outputs) there.
    """

    original: ParameterSource
    codec: WeightCodec
    transposed: bool

    @property
    def is_read_by_rows(self) -> bool:
        """Whether some outputs can be read and packed without the others."""
        content = self.original.content
        return (
            isinstance(content, Gather)
            and not self.transposed
            and all(
                piece.entry.strides is None and piece.source.shape == piece.target.shape for piece in content.pieces
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSource:
    """One parameter (or persistent buffer) of the model and where its values come from.

    Attributes:
        name: the full name in the model.
        dtype: the dtype it is loaded in; the checkpoint's own may differ.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: Group
    content: Gather | Conversion | RandomFill | Stored | Packed

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def num_numbers(self) -> int:
        """How many numbers it is that the model computes with."""
        return prod(self.content.original.shape if isinstance(self.content, Packed) else self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightMap:
    """Every parameter of a model, each tensor once.

    Attributes:
        parameters: by full name in the model, without those that share another's tensor.
        tied: name of a parameter -> name of the one in `parameters` whose tensor it shares.
        num_layers: how many decoder layers there are; their groups are 0, 1, ....
        ignored: checkpoint tensors that are known to be needless.
    """

    parameters: Mapping[str, ParameterSource] = field(repr=False)
    tied: Mapping[str, str]
    num_layers: int
    ignored: tuple[str, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups in the order in which a forward pass needs them."""
        return ("embedding", "rest", *range(self.num_layers), "head")

    def in_group(self, group: Group) -> tuple[ParameterSource, ...]:
        """The parameters of one group, in the model's order."""
        return tuple(source for source in self.parameters.values() if source.group == group)

    def group_bytes(self, group: Group) -> int:
        """The bytes that a loaded group holds."""
        return sum(source.num_bytes for source in self.in_group(group))

    @property
    def num_bytes(self) -> int:
        """The bytes that the loaded model holds."""
        return sum(source.num_bytes for source in self.parameters.values())


def build_weight_map(model: PreTrainedModel, checkpoint: Checkpoint) -> WeightMap:
    """Finds the place of every checkpoint tensor in the skeleton `model`; reads no weights.

    Where the configuration ties two parameters and the checkpoint holds both, with different values, they are untied
    in `model`, as `from_pretrained` does; that comparison alone reads them.

    Raises:
        WeightMismatchError: tensors are missing, unexpected, of another shape or of a dtype that cannot be converted;
            the message lists all of them.
        UnsupportedCheckpointError: quantized tensors would have to be merged.
    """
    wanted = _parameters(model)
    assignments, unexpected = assign_tensors(model, checkpoint.entries.values(), wanted)
    unexpected, ignored = _without_harmless(model, unexpected)
    faults = _Faults(model, checkpoint)
    faults.unexpected = [f"{entry.file.name}: {entry.name}" for entry in unexpected]
    contents: dict[str, Gather | Conversion] = {}
    for assignment in assignments:
        contents.update(_contents(model, assignment, wanted, faults))
    tied = _resolve_ties(model, contents)
    faults.missing += [name for name in wanted if name not in contents and name not in tied and name not in faults.seen]
    faults.check()
    return assemble_weight_map(
        model, {name: wanted[name] for name in contents}, _stored(contents, checkpoint), tied, ignored
    )


def build_random_weight_map(model: PreTrainedModel, seed: int = 0) -> WeightMap:
    """Maps every parameter of the skeleton `model` to random numbers, for measurements without a checkpoint."""
    tied = dict(model.all_tied_weights_keys)
    wanted = {name: tensor for name, tensor in _parameters(model).items() if name not in tied}
    return assemble_weight_map(model, wanted, dict.fromkeys(wanted, RandomFill(seed=seed)), tied, ())


def torch_dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`: the torch-free name of a dtype."""
    return str(dtype).removeprefix("torch.")


def _parameters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All parameters and persistent buffers by name, tied ones under each of their names."""
    return dict(model.state_dict())


def assemble_weight_map(
    model: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    contents: Mapping[str, Gather | Conversion | RandomFill | Stored],
    tied: Mapping[str, str],
    ignored: Iterable[TensorEntry],
) -> WeightMap:
    """Sorts `tensors`, whose values come from `contents`, into the groups of `model`."""
    layers = find_layers(model)
    in_layer = re.compile(re.escape(layers.prefix) + r"\.(\d+)\.")
    module_names = {module: name for name, module in model.named_modules()}
    ends: list[tuple[str, Group]] = []
    if (embedding := model.get_input_embeddings()) is not None:
        ends.append((module_names[embedding] + ".", "embedding"))
    if (head := model.get_output_embeddings()) is not None:  # type: ignore[no-untyped-call]
        ends.append((module_names[head] + ".", "head"))

    def group(name: str) -> Group:
        if match := in_layer.match(name):
            return int(match[1])
        return next((group for prefix, group in ends if name.startswith(prefix)), "rest")

    parameters = {
        name: ParameterSource(
            name=name,
            shape=tuple(tensor.shape),
            dtype=torch_dtype_name(tensor.dtype),
            group=group(name),
            content=contents[name],
        )
        for name, tensor in tensors.items()
    }
    return WeightMap(
        parameters=parameters,
        tied=dict(tied),
        num_layers=len(layers.layers),
        ignored=tuple(entry.name for entry in ignored),
    )


def _contents(
    model: PreTrainedModel, assignment: Assignment, wanted: Mapping[str, torch.Tensor], faults: _Faults
) -> dict[str, Gather | Conversion]:
    """The parameters that one assignment makes, those left out that do not fit; these are noted as faults."""
    if missing := assignment.missing():
        faults.missing += missing
        faults.seen.add(assignment.target)
        return {}
    try:
        content: Gather | Conversion | None = assignment.gather()
        if content is None:
            content = assignment.conversion()
        shapes = {assignment.target: content.shape} if isinstance(content, Gather) else content.shapes(model)
    # What a converter raises on tensors that do not go together is not documented.
    except Exception as error:
        faults.add(assignment, assignment.target, str(error))
        return {}
    fitting: dict[str, Gather | Conversion] = {}
    for name, shape in shapes.items():
        tensor = wanted.get(name)
        unlike = {entry.dtype for _, entry in assignment.inputs} - {"" if tensor is None else _dtype(tensor)}
        if tensor is None:
            faults.add(assignment, name, "the model has no such parameter")
        elif shape != tuple(tensor.shape):
            faults.add(
                assignment, name, f"shape {_shape(shape)} in the checkpoint, {_shape(tensor.shape)} in the model"
            )
        elif unlike and not (unlike | {_dtype(tensor)} <= CONVERTIBLE_DTYPES):
            faults.add(assignment, name, f"dtype {', '.join(sorted(unlike))} cannot become {_dtype(tensor)}")
        else:
            fitting[name] = content
    return fitting


def _stored(
    contents: Mapping[str, Gather | Conversion], checkpoint: Checkpoint
) -> dict[str, Gather | Conversion | Stored]:
    """Returns `contents` with what the checkpoint has in fewer bits marked as such."""
    found: dict[str, Gather | Conversion | Stored] = dict(contents)
    for name, content in contents.items():
        entries = [piece.entry for piece in content.pieces] if isinstance(content, Gather) else content.entries
        packed = [checkpoint.packed[entry.name] for entry in entries if entry.name in checkpoint.packed]
        if len(packed) == len(entries) == 1 and isinstance(content, Gather):
            found[name] = Stored(entry=packed[0], codec=checkpoint_codec(packed[0].scheme.group_size))
        elif packed:
            raise UnsupportedCheckpointError(
                f"{packed[0].codes.file}: {name} is made of {len(packed)} quantized tensors ({packed[0].codes.name}), "
                "which this version does not merge; use the original checkpoint and --quantization int8 or int4"
            )
    return found


def _resolve_ties(model: PreTrainedModel, contents: dict[str, Gather | Conversion]) -> dict[str, str]:
    """Decides which parameters share a tensor and leaves one content for each tensor in `contents`."""
    tied: dict[str, str] = {}
    for name, source in dict(model.all_tied_weights_keys).items():
        if name in contents and source in contents:
            if not _same_values(contents[name], contents[source]):
                model.all_tied_weights_keys.pop(name)
                continue
            del contents[name]
        elif name in contents:
            contents[source] = contents.pop(name)
        tied[name] = source
    return tied


def _same_values(left: Gather | Conversion, right: Gather | Conversion) -> bool:
    """Whether two contents are one tensor of the checkpoint each, with equal bytes."""
    if not (isinstance(left, Gather) and isinstance(right, Gather) and len(left.pieces) == len(right.pieces) == 1):
        return False
    first, second = left.pieces[0].entry, right.pieces[0].entry
    if replace(first, name="") == replace(second, name=""):
        return True
    if (first.dtype, first.shape, first.strides) != (second.dtype, second.shape, second.strides):
        return False
    with RangeReader() as reader:
        buffers = memoryview(bytearray(_COMPARED_BYTES)), memoryview(bytearray(_COMPARED_BYTES))
        for position in range(0, first.num_bytes, _COMPARED_BYTES):
            count = min(_COMPARED_BYTES, first.num_bytes - position)
            for entry, buffer in zip((first, second), buffers, strict=True):
                reader.read_into(entry.file, entry.offset + position, buffer[:count])
            if buffers[0][:count] != buffers[1][:count]:
                return False
    return True


def _without_harmless(
    model: PreTrainedModel, unexpected: list[TensorEntry]
) -> tuple[list[TensorEntry], list[TensorEntry]]:
    """Splits tensors without a place into those that matter and those known to be needless."""
    patterns = [*_HARMLESS, *(model._keys_to_ignore_on_load_unexpected or ())]
    harmless = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return (
        [entry for entry in unexpected if not harmless.search(entry.name)],
        [entry for entry in unexpected if harmless.search(entry.name)],
    )


def _dtype(tensor: torch.Tensor) -> str:
    return torch_dtype_name(tensor.dtype)


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


class _Faults:
    """Collects everything that does not fit, and raises it as one error."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        self._model_name = type(model).__name__
        self._path: Path = checkpoint.path
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.wrong: list[str] = []
        self.seen: set[str] = set()

    def add(self, assignment: Assignment, name: str, what: str) -> None:
        first = assignment.inputs[0][1]
        others = f" and {len(assignment.inputs) - 1} more" if len(assignment.inputs) > 1 else ""
        self.seen.add(name)
        self.wrong.append(f"{first.file.name}: {first.name}{others}: {what}")

    def check(self) -> None:
        """Raises WeightMismatchError if anything was noted."""
        parts = [
            f"{len(found)} {title}: {_listed(found)}"
            for title, found in (
                ("missing", self.missing),
                ("that do not fit", self.wrong),
                ("unexpected", self.unexpected),
            )
            if found
        ]
        if not parts:
            return
        if self.wrong or (self.missing and self.unexpected):
            remedy = "config.json and the weights belong to different models; use the config.json of these weights"
        elif self.missing:
            remedy = "the checkpoint is incomplete; download or copy all of its files again"
        else:
            remedy = (
                "config.json describes a smaller or another model than these weights, or they hold parts that it does "
                "not have; use the config.json of these weights, or save the model again with transformers"
            )
        raise WeightMismatchError(
            f"{self._path}: the tensors do not fit {self._model_name} as config.json describes it: "
            f"{'; '.join(parts)}; {remedy}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_FAULTS} more" if len(names) > _LISTED_FAULTS else ""
    return ", ".join(names[:_LISTED_FAULTS]) + more
