"""A linear layer whose weight is packed in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction

from headrace.compression.weight_codecs import PART_OUTPUTS, Int4Codec, Int8Codec, WeightCodec
from headrace.kernels.library import library
from headrace.kernels.packed_linear import PackedWeight, int4_linear, int8_linear
from headrace.kernels.types import TYPES


class PackedLinear(nn.Module):
    """Takes the place of a `torch.nn.Linear`.

    Tokens are rounded to 8 bits, so that products are whole numbers: each by a scale of its own where the weight is in
    8 bits (W8A8), and group by group where it is in 4 (W4A8). Where the C++ library does not run, the weight is
    unpacked at each use.

    Attributes:
        weight: as `codec` packs it, uint8.
        bias: (outputs), or None.
    """

    def __init__(self, num_inputs: int, num_outputs: int, codec: WeightCodec, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = num_inputs
        self.out_features = num_outputs
        self.codec = codec
        shape = codec.packed_shape(num_outputs, num_inputs)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def num_outputs(self) -> int:
        """Of those that are there: a large weight may come in pieces."""
        return min(self.out_features, len(self.weight) * PART_OUTPUTS)

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """(..., inputs) -> (..., outputs) in the same dtype."""
        (output,) = multiply(input, [self])
        return output

    def multiply_unpacked(self, input: Tensor) -> Tensor:
        """Does so anywhere."""
        weight = self.codec.decode(self.weight, self.num_outputs, self.in_features)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(rounded_tokens(input, self.codec), weight, bias).to(input.dtype)

    def extra_repr(self) -> str:
        """As torch's own modules describe themselves."""
        return f"{self.in_features} -> {self.out_features}, {self.codec.label}"


def multiply(input: Tensor, layers: Sequence[PackedLinear]) -> list[Tensor]:
    """Returns what each of `layers`, of one codec and one number of inputs, makes of (..., inputs), in one go."""
    codec, found = layers[0].codec, library()
    with DisableTorchFunction():  # the products of other layers are not looked for in here, which takes time
        if found is None or input.device.type != "cpu" or input.dtype not in TYPES:
            return [layer.multiply_unpacked(input) for layer in layers]
        weights = [PackedWeight(layer.weight, layer.bias, layer.num_outputs) for layer in layers]
        match codec:
            case Int8Codec(outliers=outliers):
                return int8_linear(found, input, weights, outliers)
            case Int4Codec(group_size=group_size):
                return int4_linear(found, input, weights, group_size)
            case _:
                raise AssertionError(f"no product for {codec.name}")


def rounded_tokens(tokens: Tensor, codec: WeightCodec) -> Tensor:
    """Returns tokens (..., K) in fp32, rounded to 8 bits as they are for weights that `codec` packs."""
    wide = tokens.float()
    match codec:
        case Int4Codec(group_size=group_size):
            width = wide.shape[-1]
            padded = nn.functional.pad(wide, (0, -width % group_size))
            return _in_8_bits(padded.view(*wide.shape[:-1], -1, group_size)).flatten(-2)[..., :width]
        case Int8Codec(outliers=float(magnitude)):
            kept = torch.where(wide.abs() >= magnitude, wide, 0)
            return _in_8_bits(wide - kept) + kept
        case _:
            return _in_8_bits(wide)


def _in_8_bits(numbers: Tensor) -> Tensor:
    """(..., K) fp32, each K of them in steps of their largest one over 127."""
    largest = numbers.abs().amax(dim=-1, keepdim=True)
    factors = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)
    return (numbers * factors).round_() * (largest / 127)


def product_with(weight: Tensor, codec: WeightCodec | None) -> Callable[[Tensor], Tensor]:
    """Returns what multiplies tokens (..., K) by the transpose of `weight` (N, K), packed or as it is."""
    if codec is None:
        return partial(nn.functional.linear, weight=weight)
    layer = PackedLinear(weight.shape[1], weight.shape[0], codec, None)
    layer.weight = nn.Parameter(codec.encode(weight), requires_grad=False)
    return layer
