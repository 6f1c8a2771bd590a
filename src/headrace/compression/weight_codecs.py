"""How weights are packed in 8 or 4 bits, and what they were: the layout of `kernels/packing.h`, in plain torch.

A weight has N outputs and K inputs. Outputs lie in parts of 64, both are padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.compression.nibbles import from_words, to_words

PART_OUTPUTS = 64
"""Outputs that are packed together."""
DEFAULT_GROUP_SIZE = 64
"""FlexGen's (Sheng et al., 2023, section 5)."""
OUTLIER_MAGNITUDE = 6.0
"""LLM.int8()'s threshold."""
MAX_INT8_INPUTS = 65_536
"""Sums of more products of two bytes may not fit in 32 bits."""

_INT8_LARGEST, _INT4_LARGEST = 127, 15
_INPUTS_PER_QUAD = 4


class WeightCodec(Protocol):
    """Packs weights of one form. The packed shape is (parts, bytes of a part), in uint8."""

    @property
    def name(self) -> str:
        """What decides its bytes, for names of files."""

    @property
    def label(self) -> str:
        """What a user reads: also says how tokens are multiplied."""

    def fits(self, num_outputs: int, num_inputs: int) -> bool:
        """Whether a weight of this shape can be packed, and becomes smaller than in half precision."""

    def packed_shape(self, num_outputs: int, num_inputs: int) -> tuple[int, int]:
        """Returns the shape of a packed weight."""

    def encode(self, weight: Tensor) -> Tensor:
        """Returns `weight` (N, K) packed; its numbers are finite."""

    def decode(self, packed: Tensor, num_outputs: int, num_inputs: int) -> Tensor:
        """Returns the weight (N, K) that `packed` stands for, in fp32."""


@dataclass(frozen=True, slots=True)
class Int8Codec:
    """Symmetric in 8 bits, one scale per output: weight = scale * code, |code| <= 127.

    Attributes:
        outliers: numbers of a token from this magnitude on are multiplied as they are, the others in 8 bits, as in
            LLM.int8() (Dettmers et al., 2022, section 3); None where all are in 8 bits.
    """

    outliers: float | None = None

    @property
    def name(self) -> str:
        return "int8"

    @property
    def label(self) -> str:
        return "int8" if self.outliers is None else "int8-outliers"

    def fits(self, num_outputs: int, num_inputs: int) -> bool:
        return num_inputs <= MAX_INT8_INPUTS and _is_smaller(self, num_outputs, num_inputs)

    def packed_shape(self, num_outputs: int, num_inputs: int) -> tuple[int, int]:
        return _parts(num_outputs), PART_OUTPUTS * (_up(num_inputs, _INPUTS_PER_QUAD) + 4 + 4)

    def encode(self, weight: Tensor) -> Tensor:
        return self.pack(*self.codes(weight))

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns codes (N, K) int8 and scales (N)."""
        wide = weight.float()
        scales = _rounded(wide.abs().amax(dim=1) / _INT8_LARGEST)
        codes = (wide / _no_zeros(scales)[:, None]).round_().clamp_(-_INT8_LARGEST, _INT8_LARGEST)
        return codes.to(torch.int8), scales

    def pack(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Packs what is in 8 bits already: codes (N, K) int8, scales (N) fp32."""
        codes, scales = _padded(codes, PART_OUTPUTS, _INPUTS_PER_QUAD), _padded(scales[:, None], PART_OUTPUTS, 1)[:, 0]
        sums = codes.sum(dim=1, dtype=torch.int32)
        quads = codes.view(-1, PART_OUTPUTS, codes.shape[1] // _INPUTS_PER_QUAD, _INPUTS_PER_QUAD).transpose(1, 2)
        return torch.cat([_bytes(part) for part in (quads, _by_part(scales), _by_part(sums))], dim=1)

    def decode(self, packed: Tensor, num_outputs: int, num_inputs: int) -> Tensor:
        num_parts, width = len(packed), _up(num_inputs, _INPUTS_PER_QUAD)
        codes, scales, _ = torch.split(packed, [PART_OUTPUTS * width, PART_OUTPUTS * 4, PART_OUTPUTS * 4], dim=1)
        quads = codes.contiguous().view(torch.int8).view(num_parts, -1, PART_OUTPUTS, _INPUTS_PER_QUAD)
        rows = quads.transpose(1, 2).reshape(-1, width).float()
        return (rows * _numbers(scales, torch.float32).view(-1, 1))[:num_outputs, :num_inputs]


@dataclass(frozen=True, slots=True)
class Int4Codec:
    """Asymmetric in 4 bits, group by group along the inputs: weight = scale * (code - zero), both from 0 to 15."""

    group_size: int = DEFAULT_GROUP_SIZE

    @property
    def name(self) -> str:
        return f"int4-{self.group_size}"

    @property
    def label(self) -> str:
        return self.name

    def fits(self, num_outputs: int, num_inputs: int) -> bool:
        return num_inputs % self.group_size == 0 and _is_smaller(self, num_outputs, num_inputs)

    def packed_shape(self, num_outputs: int, num_inputs: int) -> tuple[int, int]:
        return _parts(num_outputs), -(-num_inputs // self.group_size) * self._group_bytes

    def encode(self, weight: Tensor) -> Tensor:
        return self.pack(*self.codes(weight))

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns codes (N, groups, group size) uint8, scales (N, groups) fp32 and zeros (N, groups) uint8."""
        groups = _padded(weight.float(), 1, self.group_size).view(len(weight), -1, self.group_size)
        lowest, highest = groups.amin(dim=2).clamp_(max=0), groups.amax(dim=2).clamp_(min=0)
        scales = _rounded((highest - lowest) / _INT4_LARGEST)
        steps = _no_zeros(scales)
        zeros = (-lowest / steps).round_().clamp_(0, _INT4_LARGEST)
        codes = (groups / steps[..., None]).round_().add_(zeros[..., None]).clamp_(0, _INT4_LARGEST)
        return codes.to(torch.uint8), scales, zeros.to(torch.uint8)

    def pack(self, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """Packs what `codes` returns, or what a checkpoint has instead."""
        codes = _padded(codes.flatten(1), PART_OUTPUTS, 1).view(-1, *codes.shape[1:])
        scales, zeros = _padded(scales, PART_OUTPUTS, 1), _padded(zeros, PART_OUTPUTS, 1)
        words = to_words(codes.flatten(1)).view(*codes.shape[:2], -1)
        groups = [_by_group(words), _by_group(scales[..., None]), _by_group(zeros[..., None])]
        return torch.cat(groups, dim=2).flatten(1)

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what `pack` was given, with outputs up to whole parts."""
        groups = packed.view(len(packed), -1, self._group_bytes)
        sizes = [self.group_size // 2 * PART_OUTPUTS, 4 * PART_OUTPUTS, PART_OUTPUTS]
        words, scales, zeros = torch.split(groups, sizes, dim=2)
        num_outputs, num_groups = len(packed) * PART_OUTPUTS, groups.shape[1]
        columns = _numbers(words, torch.int32).view(len(packed), num_groups, -1, PART_OUTPUTS).permute(0, 3, 1, 2)
        codes = from_words(columns.reshape(num_outputs, -1), num_groups * self.group_size)
        return (
            codes.view(num_outputs, num_groups, self.group_size),
            _numbers(scales, torch.float32).transpose(1, 2).reshape(num_outputs, -1),
            zeros.transpose(1, 2).reshape(num_outputs, -1),
        )

    def decode(self, packed: Tensor, num_outputs: int, num_inputs: int) -> Tensor:
        codes, scales, zeros = self.unpack(packed)
        weight = (codes.float() - zeros[..., None]) * scales[..., None]
        return weight.flatten(1)[:num_outputs, :num_inputs]

    @property
    def _group_bytes(self) -> int:
        return PART_OUTPUTS * (self.group_size // 2 + 4 + 1)


def weight_codec(name: str) -> WeightCodec | None:
    """Returns the codec that `--quantization` means by `int8`, `int8-outliers` or `int4`; None for `none`."""
    match name:
        case "int8":
            return Int8Codec()
        case "int8-outliers":
            return Int8Codec(OUTLIER_MAGNITUDE)
        case "int4":
            return Int4Codec()
        case _:
            return None


def _is_smaller(codec: WeightCodec, num_outputs: int, num_inputs: int) -> bool:
    num_parts, part_bytes = codec.packed_shape(num_outputs, num_inputs)
    return num_parts * part_bytes < num_outputs * num_inputs * torch.bfloat16.itemsize


def _parts(num_outputs: int) -> int:
    return -(-num_outputs // PART_OUTPUTS)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _padded(matrix: Tensor, row_multiple: int, column_multiple: int) -> Tensor:
    num_rows, num_columns = matrix.shape
    padding = (0, _up(num_columns, column_multiple) - num_columns, 0, _up(num_rows, row_multiple) - num_rows)
    return torch.nn.functional.pad(matrix, padding)


def _rounded(scales: Tensor) -> Tensor:
    """Scales are numbers of bfloat16, in which checkpoints hold them; they are kept in fp32."""
    return scales.to(torch.bfloat16).float()


def _no_zeros(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, 1)


def _by_part(numbers: Tensor) -> Tensor:
    """(padded N, ...) -> (parts, ..., 64)."""
    return numbers.view(-1, PART_OUTPUTS, *numbers.shape[1:]).movedim(1, -1)


def _by_group(numbers: Tensor) -> Tensor:
    """(padded N, groups, W) -> (parts, groups, bytes): numbers of one place of 64 outputs lie together."""
    num_groups = numbers.shape[1]
    ordered = numbers.view(-1, PART_OUTPUTS, *numbers.shape[1:]).permute(0, 2, 3, 1).contiguous()
    return ordered.view(torch.uint8).view(-1, num_groups, ordered.nbytes // (len(ordered) * num_groups))


def _bytes(numbers: Tensor) -> Tensor:
    """(parts, ...) -> (parts, bytes)."""
    return numbers.contiguous().view(torch.uint8).reshape(len(numbers), -1)


def _numbers(of: Tensor, dtype: torch.dtype) -> Tensor:
    return of.contiguous().view(dtype)
