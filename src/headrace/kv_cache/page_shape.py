"""What one attention layer keeps of a token, and what that takes. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.compression.kv_codec import KVCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class PageShape:
    """Pages of one attention layer; `value_width` numbers of the key serve as value where `latent`.

    Attributes:
        codec: what makes records of bytes of the numbers; None: they are kept as they are.
    """

    num_kv_heads: int
    key_width: int
    value_width: int
    latent: bool
    codec: KVCodec | None = None

    @property
    def key_columns(self) -> int:
        """Elements of a page for one head's key: numbers, or bytes."""
        if not self.latent:
            return self._columns(self.key_width)
        return self._columns(self.value_width) + self._columns(self.key_width - self.value_width)

    @property
    def value_columns(self) -> int:
        """The same for its value; none where that is a part of the key."""
        return 0 if self.latent else self._columns(self.value_width)

    def token_bytes(self, dtype_bytes: int) -> int:
        """Returns what a token takes in one layer of a model whose numbers take `dtype_bytes`."""
        element_bytes = dtype_bytes if self.codec is None else 1
        return self.num_kv_heads * (self.key_columns + self.value_columns) * element_bytes

    def _columns(self, width: int) -> int:
        return width if self.codec is None else self.codec.num_bytes(width)
