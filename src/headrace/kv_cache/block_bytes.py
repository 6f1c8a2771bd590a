"""The blocks of pools in host memory as bytes, to move them elsewhere and back."""

from __future__ import annotations

import torch

from headrace.kv_cache.pools import KVPools
from headrace.storage.aligned import PAGE_BYTES


class BlockBytes:
    """Looks at each block of a group as one record: its part of every layer, layer after layer."""

    def __init__(self, pools: KVPools, num_groups: int) -> None:
        tensors = [[tensor for tensor in pools.tensors(group) if tensor.numel()] for group in range(num_groups)]
        self._parts = [
            [(each.view(-1).view(torch.uint8).numpy().data, each[0].nbytes) for each in group] for group in tensors
        ]

    @property
    def is_aligned(self) -> bool:
        """Whether all parts of all records begin and end at page borders, as pools do."""
        return all(num_bytes % PAGE_BYTES == 0 for group in self._parts for _, num_bytes in group)

    def record_bytes(self, group: int) -> int:
        """Returns the bytes of one block."""
        return sum(num_bytes for _, num_bytes in self._parts[group])

    def views(self, group: int, block: int) -> list[memoryview]:
        """Returns the memory of a block, part by part."""
        return [memory[block * num_bytes : (block + 1) * num_bytes] for memory, num_bytes in self._parts[group]]
