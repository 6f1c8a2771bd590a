"""From checkpoint names to parameters: transformers' renamings and conversions, done as arithmetic where possible.

Stacking and concatenation (per-expert tensors into merged experts) become a gather of byte ranges. Any other conversion
is left to transformers itself, one parameter at a time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from headrace.checkpoint.gather import Gather, concatenate, stack
from headrace.checkpoint.tensors import TensorEntry, natural_key
from headrace.models.transformers_api import (
    Concatenate,
    MergeModulelist,
    PreTrainedModel,
    WeightConverter,
    WeightRenaming,
    get_model_conversion_mapping,
    rename_source_key,
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Checkpoint tensors that transformers' own converter turns into one or several parameters.

    Attributes:
        inputs: (source pattern of the converter, checkpoint tensor), in the order in which they are stacked.
        first_target: the full name of the parameter that the converter's first target pattern stands for.
    """

    inputs: tuple[tuple[str, TensorEntry], ...]
    first_target: str
    converter: WeightConverter

    @property
    def entries(self) -> list[TensorEntry]:
        """The checkpoint tensors alone."""
        return [entry for _, entry in self.inputs]

    def run(self, model: PreTrainedModel, read: Callable[[TensorEntry], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the converted tensors by parameter name; `read` supplies each input when it is needed."""
        converter = copy.deepcopy(self.converter)
        for pattern, entry in self.inputs:
            # transformers takes a callable wherever it takes a future.
            converter.add_tensor(self.first_target, entry.name, pattern, partial(read, entry))  # type: ignore[arg-type]
        converted = converter.convert(self.first_target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    def shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the converted tensors without reading any."""
        converted = self.run(model, lambda entry: torch.empty(entry.shape, dtype=torch.float32, device="meta"))
        return {name: tuple(value.shape) for name, value in converted.items()}


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The checkpoint tensors that belong to one parameter, or to the several parameters of one conversion.

    Attributes:
        target: the parameter's full name; the first target's where a conversion makes several.
        inputs: (source pattern or None, checkpoint tensor).
        converter: how they are turned into the parameter; None where the one tensor is taken as it is.
    """

    target: str
    inputs: tuple[tuple[str | None, TensorEntry], ...]
    converter: WeightConverter | None

    def missing(self) -> list[str]:
        """Returns the names of tensors that a list of experts lacks: numbers that other tensors of the list have."""
        if self.converter is None:
            return []
        names: dict[str, dict[int, str]] = {
            pattern: {} for pattern in self.converter.source_patterns if "*." in pattern
        }
        for pattern, entry in self.inputs:
            if pattern in names and (match := _numbered(pattern).search(entry.name)):
                names[pattern][int(match[2])] = entry.name
        numbers = {number for found in names.values() for number in found}
        return [
            _numbered(pattern).sub(rf"\g<1>{number}\g<3>", next(iter(found.values()), pattern.replace("*", "0")))
            for pattern, found in names.items()
            for number in range(max(numbers, default=-1) + 1)
            if number not in found
        ]

    def gather(self) -> Gather | None:
        """Returns the parameter as a gather, or None when only transformers' own converter can make it.

        Raises:
            ValueError: the tensors' shapes do not go together, or there are several where one is wanted.
        """
        if self.converter is None:
            if len(self.inputs) > 1:
                raise ValueError("several tensors of the checkpoint stand for this one parameter")
            return Gather.whole(self.inputs[0][1])
        by_pattern: dict[str, list[Gather]] = {pattern: [] for pattern in self.converter.source_patterns}
        for pattern, entry in self.inputs:
            assert pattern is not None
            if entry.strides is not None:
                return None
            by_pattern[pattern].append(Gather.whole(entry))
        return _gather(by_pattern, self.converter)

    def conversion(self) -> Conversion:
        """Returns the conversion by transformers; only for an assignment with a converter."""
        assert self.converter is not None
        inputs = tuple((pattern, entry) for pattern, entry in self.inputs if pattern is not None)
        return Conversion(inputs=inputs, first_target=self.target, converter=self.converter)


def assign_tensors(
    model: PreTrainedModel, entries: Iterable[TensorEntry], wanted: Mapping[str, torch.Tensor]
) -> tuple[list[Assignment], list[TensorEntry]]:
    """Returns which checkpoint tensors make which of the `wanted` parameters, and the tensors that make none.

    Renames as `from_pretrained` does: the architecture's renamings, then at most one converter, then the base model's
    prefix added or removed; a name that only exists un-renamed is kept.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [transform for transform in mapping if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in mapping if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, meta = model.base_model_prefix, dict(wanted)
    inputs: dict[str, list[tuple[str | None, TensorEntry]]] = {}
    unexpected: list[TensorEntry] = []
    for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
        target, pattern = rename_source_key(entry.name, renamings, converters, prefix, meta)
        if target not in wanted and entry.name in wanted:
            target, pattern = rename_source_key(entry.name, [], [], prefix, meta)
        if target in wanted:
            inputs.setdefault(target, []).append((pattern, entry))
        else:
            unexpected.append(entry)
    assignments = []
    for target, found in inputs.items():
        patterns = {pattern for pattern, _ in found}
        # A tensor that already has its merged form beside unmerged ones shows as several tensors for one parameter.
        converter = None if None in patterns else by_pattern[next(iter(patterns))]  # type: ignore[index]
        assignments.append(Assignment(target=target, inputs=tuple(found), converter=converter))
    return assignments, unexpected


def _numbered(pattern: str) -> re.Pattern[str]:
    """Matches the names that a converter's pattern means, the number in place of its `*.` as group 2."""
    before, _, after = pattern.partition("*.")
    return re.compile(rf"({before})(\d+)(\.{after})")


def _gather(by_pattern: dict[str, list[Gather]], converter: WeightConverter) -> Gather | None:
    """Carries out a chain of stacking and concatenation, or returns None when there is anything else in the chain."""
    values = {pattern: gathers for pattern, gathers in by_pattern.items() if gathers}
    for operation in converter.operations:
        if type(operation) is MergeModulelist:
            values = {pattern: [stack(gathers, operation.dim)] for pattern, gathers in values.items()}
        elif type(operation) is Concatenate:
            joined = concatenate([gather for gathers in values.values() for gather in gathers], operation.dim)
            values = {converter.target_patterns[0]: [joined]}
        else:
            return None
    results = [gather for gathers in values.values() for gather in gathers]
    return results[0] if len(results) == 1 and len(converter.target_patterns) == 1 else None
