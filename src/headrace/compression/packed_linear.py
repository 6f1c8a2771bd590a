"""A linear layer whose weight is packed in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction

from headrace.compression.weight_codecs import PART_OUTPUTS, Int4Codec, Int8Codec, WeightCodec
from headrace.kernels.int8_linear import int8_linear
from headrace.kernels.library import library
from headrace.kernels.linear import int4_linear
from headrace.kernels.types import TYPES


class PackedLinear(nn.Module):
    """Takes the place of a `torch.nn.Linear`.

    In 8 bits tokens are rounded to 8 bits, too, each by a scale of its own (W8A8), and products are whole numbers; in 4
    bits tokens stay as they are (W4A16) and products are summed in fp32. Where the C++ library does not run, the weight
    is unpacked at each use.

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

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """(..., inputs) -> (..., outputs) in the same dtype."""
        with DisableTorchFunction():  # the products of other layers are not looked for in here, which takes time
            tokens = input.reshape(-1, self.in_features).contiguous()
            return self._multiply(tokens).view(*input.shape[:-1], self._num_outputs)

    @property
    def _num_outputs(self) -> int:
        """Of a large layer the weight may be there part by part."""
        return min(self.out_features, len(self.weight) * PART_OUTPUTS)

    def _multiply(self, tokens: Tensor) -> Tensor:
        found = library()
        if found is None or tokens.device.type != "cpu" or tokens.dtype not in TYPES:
            return self._multiply_unpacked(tokens)
        match self.codec:
            case Int8Codec(outliers=outliers):
                return int8_linear(found, tokens, self.weight, self.bias, self._num_outputs, outliers)
            case Int4Codec(group_size=group_size):
                return int4_linear(found, tokens, self.weight, self.bias, self._num_outputs, group_size)
            case _:
                raise AssertionError(f"no product for {self.codec.name}")

    def _multiply_unpacked(self, tokens: Tensor) -> Tensor:
        codec = self.codec
        numbers = rounded_tokens(tokens, codec.outliers) if isinstance(codec, Int8Codec) else tokens.float()
        weight = self.codec.decode(self.weight, self._num_outputs, self.in_features)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(numbers, weight, bias).to(tokens.dtype)

    def extra_repr(self) -> str:
        """As torch's own modules describe themselves."""
        return f"{self.in_features} -> {self.out_features}, {self.codec.label}"


def rounded_tokens(tokens: Tensor, outliers: float | None) -> Tensor:
    """Returns tokens (T, K) in fp32, each rounded to 8 bits by its own largest number, but for `outliers` and above."""
    wide = tokens.float()
    kept = torch.zeros_like(wide) if outliers is None else torch.where(wide.abs() >= outliers, wide, 0)
    rest = wide - kept
    largest = rest.abs().amax(dim=-1, keepdim=True)
    factors = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)
    return (rest * factors).round_() * (largest / 127) + kept


def product_with(weight: Tensor, codec: WeightCodec | None) -> Callable[[Tensor], Tensor]:
    """Returns what multiplies tokens (..., K) by the transpose of `weight` (N, K), packed or as it is."""
    if codec is None:
        return partial(nn.functional.linear, weight=weight)
    layer = PackedLinear(weight.shape[1], weight.shape[0], codec, None)
    layer.weight = nn.Parameter(codec.encode(weight), requires_grad=False)
    return layer
