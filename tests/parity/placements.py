"""Gives rigs a tier below: for the KV of layers, or for that of rows which lose their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from headrace.executor.block_moves import BlockMover, room_below
from headrace.executor.kv_homes import AttendsAtHome, lay_out
from headrace.executor.kv_stream import KVStream
from headrace.executor.pools import build_pools
from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.stores import FileBehindLink, FileStore, HostStore, KVStore
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.cuda_link import CudaLink
from headrace.storage.folders import DiskTier
from headrace.storage.link import Link
from headrace.storage.scratch_file import ScratchFile
from headrace.storage.simulated_device import SimulatedDevice, SimulatedLink
from tests.late_runtime import LateRuntime
from tests.parity.harness import Rig, Shape, executor_of

AT_HOME: dict[str, AttendsAtHome] = {
    "always": lambda home, chunks, blocks: True,
    "at times": lambda home, chunks, blocks: (home.offset + len(chunks) + len(blocks.blocks)) % 2 == 0,
    "never": lambda home, chunks, blocks: False,
}


def attention_layers(table: LayerTable) -> list[int]:
    return [index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec)]


@contextmanager
def kv_elsewhere(
    rig: Rig,
    table: LayerTable,
    layers: Sequence[int],
    shape: Shape,
    folder: Path,
    tier: str = "disk",
    at_home: str = "never",
) -> Iterator[None]:
    """Moves the KV of `layers` of a rig that has just been made to another tier, below memory or below a device."""
    num_blocks = [pool.num_blocks for pool in rig.cache.pools]
    device = torch.device("cpu")

    link: Link = (
        CudaLink(LateRuntime())
        if "late" in tier
        else SimulatedLink(SimulatedDevice(memory_bytes=1 << 30, bytes_per_second=2e10))
    )

    def open_store(num_bytes: int, is_aligned: bool) -> KVStore:
        if "host" in tier:
            return HostStore(link, num_bytes)
        file = ScratchFile(DiskTier(folder=folder), what="KV cache", num_bytes=num_bytes, is_aligned=is_aligned)
        return FileStore(file) if tier == "disk" else FileBehindLink(file, link)

    homes = lay_out(table, layers, num_blocks, shape.block_tokens, torch.float32, open_store, shape.codec)
    allocate = AlignedBuffer if tier == "disk" else link.device_memory
    stream = KVStream(
        homes, slab_blocks=max(num_blocks), device=device, allocate=allocate, attends_at_home=AT_HOME[at_home]
    )
    executor = executor_of(rig)
    pools = build_pools(table, num_blocks, shape.block_tokens, torch.float32, device, frozenset(layers), shape.codec)
    executor.contexts.__dict__["_pools"] = pools
    rig.executor = replace(executor, kv=stream)
    try:
        yield
    finally:
        stream.close()
        link.close()


@contextmanager
def moving(rig: Rig, folder: Path) -> Iterator[None]:
    """Gives a rig just made a tier below, with room for all that its rows have, shared blocks once for each."""
    executor = executor_of(rig)
    num_places = [4 * pool.num_blocks for pool in rig.cache.pools]
    blocks = BlockBytes(executor.contexts._pools, len(num_places))
    num_bytes = room_below(blocks, num_places)
    file = ScratchFile(DiskTier(folder=folder), what="KV", num_bytes=num_bytes, is_aligned=blocks.is_aligned)
    mover = BlockMover(blocks, num_places, file)
    rig.cache.open_parking(num_places)
    rig.executor = replace(executor, moves=mover)
    try:
        yield
    finally:
        mover.close()
