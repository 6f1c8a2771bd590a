"""Keys and values in codes of 8 or 4 bits: the codecs, and what they make of a number of bytes. Free of torch.

The numbers of one head of a token, W of them, are one record of bytes:

    | W codes of 8 bits, or of 4, the first of two in the lower half of a byte | scale, minimum | scale, minimum | ...

There is a scale and a minimum for each 64 numbers, and for what remains behind the last 64. A number is
scale * code + minimum: group-wise quantization between least and largest, as FlexGen has it (arXiv 2303.06865,
section 4), along the width of a head.

Scales and minima are bfloat16: two bytes, as float16 has them, but with the range of float32, so that no key is too
large. Minima are rounded down and scales up, so that every number lies between the least and the largest code, and is
half a scale from its code at most. That makes a scale larger by at most 2 % where the numbers have both signs. Where
they lie far from zero and close together, the rounding of the minimum decides: 1/128 of it, divided by the number of
codes, which is finer than bfloat16 is there.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP_NUMBERS = 64
"""FlexGen's; a multiple of what a register holds, so that the kernels read one scale for whole registers."""
_ENDS_BYTES = 4
"""A scale and a minimum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCodec:
    """Group-wise codes of `bits` bits: 8 or 4."""

    bits: int

    @property
    def name(self) -> str:
        """As users write it."""
        return f"int{self.bits}"

    @property
    def largest_code(self) -> int:
        """Codes begin at 0."""
        return (1 << self.bits) - 1

    def code_bytes(self, width: int) -> int:
        """Returns what the codes of `width` numbers take."""
        return -(-width * self.bits // 8)

    def num_bytes(self, width: int) -> int:
        """Returns what a record of `width` numbers takes."""
        return self.code_bytes(width) + _ENDS_BYTES * -(-width // GROUP_NUMBERS)


INT8, INT4 = KVCodec(bits=8), KVCodec(bits=4)
KV_CODECS = {codec.name: codec for codec in (INT8, INT4)}
