"""KV that lives below the device: brought into a slab before a micro-batch attends over it, and stored after that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.executor.contexts import ragged_layout
from headrace.executor.kv_homes import AttendsAtHome, LayerHome
from headrace.kv_cache.blocks import BlockCopy
from headrace.kv_cache.local_blocks import Integers, LocalBlocks, number_blocks
from headrace.kv_cache.slab import Slab
from headrace.kv_cache.stores import SlabPiece
from headrace.schedule.steps import BringKV
from headrace.scheduler.sweep import Sweep
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.link import Buffer
from headrace.storage.transfer import Transfer
from headrace.units import MIB

NUM_SLABS = 3
"""One that is attended over, one on its way here, one on its way home."""
_PIECE_BYTES = 8 * MIB
_PIECE_BLOCKS = 256
"""The system takes 1,024 parts of memory in one call."""


class KVElsewhere(Protocol):
    """Makes the KV of layers that do not keep it in the pools present."""

    def begin(self, sweep: Sweep, order: Sequence[BringKV]) -> None:
        """Makes the sweep's copies of blocks, and learns in which order its KV will be needed."""

    def bring(self, step: BringKV) -> tuple[KVPages, RaggedLayout] | None:
        """Returns the layer's KV and how the micro-batch sees it; None where the pools have it."""

    def store(self, micro_batch: int, layer: int) -> None:
        """Begins to send home what the micro-batch has written."""

    def end(self) -> None:
        """Returns when everything is home. Raises what has failed on the way."""

    def close(self) -> None:
        """Gives memory and disk back; a second call does nothing."""


class NoKVElsewhere:
    """All KV is in the pools."""

    def begin(self, sweep: Sweep, order: Sequence[BringKV]) -> None:
        pass

    def bring(self, step: BringKV) -> None:
        return None

    def store(self, micro_batch: int, layer: int) -> None:
        pass

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Moving:
    """A slab with the KV of one micro-batch in one layer, on its way here or home."""

    micro_batch: int
    layer: int
    slab: Slab
    transfer: Transfer


class KVStream:
    """Reads ahead in the order of the sweep, as far as there are slabs.

    What a micro-batch of the same sweep has yet to write is read only when it has. A sweep that failed has written
    nothing that a committed table names, but the unused ends of blocks.

    KV in the memory of a device's host can be attended over there, by the host's CPU: nothing is brought then.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerHome],
        *,
        slab_blocks: int,
        device: torch.device,
        allocate: Callable[[int], Buffer] = AlignedBuffer,
        attends_at_home: AttendsAtHome = lambda home, chunks, blocks: False,
    ) -> None:
        """Takes memory for the slabs.

        Args:
            slab_blocks: the most that a micro-batch names in one group.
            device: that computes.
            allocate: takes so many bytes of its memory.
            attends_at_home: asked where a CPU can do that.
        """
        self._layers = dict(layers)
        self._device = device
        self._attends_at_home = attends_at_home
        records = {home.record for home in layers.values()}
        self._slabs = [Slab(slab_blocks, records, allocate) for _ in range(NUM_SLABS)]
        self._block_tokens = next(iter(records)).block_tokens
        self._free = list(self._slabs)
        self._ahead: deque[_Moving] = deque()
        self._going_home: deque[_Moving] = deque()
        self._present: _Moving | None = None
        self._order: deque[tuple[int, int]] = deque()
        self._sweep: Sweep | None = None
        self._blocks: dict[int, list[LocalBlocks]] = {}
        self._at_home: set[tuple[int, int]] = set()
        self._layouts: dict[tuple[int, int, bool], RaggedLayout] = {}

    def begin(self, sweep: Sweep, order: Sequence[BringKV]) -> None:
        self._settle()
        self._sweep = sweep
        chunks = [micro_batch.chunks for micro_batch in sweep.micro_batches]
        groups = {home.group for home in self._layers.values()}
        self._blocks = {group: number_blocks(chunks, group, self._block_tokens) for group in groups}
        self._layouts = {}
        uses = [(step.micro_batch, step.point.layer) for step in order if step.point.layer in self._layers]
        self._at_home = {use for use in uses if self._is_at_home(*use)}
        self._order = deque(use for use in uses if use not in self._at_home)
        self._copy(sweep.copies)
        self._read_ahead()

    def bring(self, step: BringKV) -> tuple[KVPages, RaggedLayout] | None:
        key = step.micro_batch, step.point.layer
        home = self._layers.get(step.point.layer)
        if home is None:
            return None
        if key in self._at_home:
            assert home.pages is not None
            if len(self._blocks[home.group][step.micro_batch].late):
                self._wait_until_home(step.point.layer)
            return home.pages, self._layout(step.micro_batch, home.group, at_home=True)
        while not self._ahead:  # every slab is on its way home
            self._free_slab()
            self._read_ahead()
        moving = self._ahead.popleft()
        assert (moving.micro_batch, moving.layer) == key, f"{step} is not what comes next in the sweep"
        self._present = moving
        moving.transfer.wait()
        late = self._local(moving).late
        if len(late):
            self._wait_until_home(moving.layer)
            fetched = self._fetch(moving.layer, moving.micro_batch, moving.slab, late)
            self._present = replace(moving, transfer=fetched)
            fetched.wait()
        return moving.slab.pages(home.record), self._layout(step.micro_batch, home.group, at_home=False)

    def store(self, micro_batch: int, layer: int) -> None:
        if layer not in self._layers or (micro_batch, layer) in self._at_home:
            return
        present, self._present = self._present, None
        assert present is not None and (present.micro_batch, present.layer) == (micro_batch, layer)
        home, local = self._layers[layer], self._local(present)
        pieces = _pieces(home, local.blocks[local.written], local.written, present.slab)
        present.slab.buffer.end_use()
        transfer = home.store.write(f"KV of layer {layer}, home", present.slab, pieces)
        self._going_home.append(_Moving(micro_batch, layer, present.slab, transfer))
        self._read_ahead()

    def end(self) -> None:
        while self._going_home:
            self._free_slab()

    def close(self) -> None:
        self._settle()
        for home in self._layers.values():
            home.store.close()
        for slab in self._slabs:
            slab.close()

    def _local(self, moving: _Moving) -> LocalBlocks:
        return self._blocks[self._layers[moving.layer].group][moving.micro_batch]

    def _is_at_home(self, micro_batch: int, layer: int) -> bool:
        assert self._sweep is not None
        home = self._layers[layer]
        chunks, blocks = self._sweep.micro_batches[micro_batch].chunks, self._blocks[home.group][micro_batch]
        return home.pages is not None and self._attends_at_home(home, chunks, blocks)

    def _wait_until_home(self, layer: int) -> None:
        """What earlier micro-batches of the sweep have written in `layer` is to be read."""
        while any(going.layer == layer for going in self._going_home):
            self._free_slab()

    def _layout(self, micro_batch: int, group: int, *, at_home: bool) -> RaggedLayout:
        """Built once for all layers of the group that lie on a device, or are attended over at home."""
        key = micro_batch, group, at_home
        if key not in self._layouts:
            assert self._sweep is not None
            chunks, tokens = self._sweep.micro_batches[micro_batch].chunks, self._block_tokens
            if at_home:
                self._layouts[key] = ragged_layout(chunks, group, tokens, torch.device("cpu"))
            else:
                local = self._blocks[group][micro_batch]
                self._layouts[key] = ragged_layout(chunks, group, tokens, self._device, local.translate)
        return self._layouts[key]

    def _read_ahead(self) -> None:
        while self._order:
            while not self._free and self._going_home and self._going_home[0].transfer.is_complete:
                self._free_slab()
            if not self._free:
                return
            micro_batch, layer = self._order.popleft()
            slab = self._free.pop()
            early = self._blocks[self._layers[layer].group][micro_batch].early
            self._ahead.append(_Moving(micro_batch, layer, slab, self._fetch(layer, micro_batch, slab, early)))

    def _fetch(self, layer: int, micro_batch: int, slab: Slab, numbers: Integers) -> Transfer:
        home = self._layers[layer]
        blocks = self._blocks[home.group][micro_batch].blocks
        return home.store.read(f"KV of layer {layer}", slab, _pieces(home, blocks[numbers], numbers, slab))

    def _free_slab(self) -> None:
        """Waits for what has been on its way home for longest.

        Raises:
            DiskSpaceError: it could not be written.
        """
        going = self._going_home.popleft()
        self._free.append(going.slab)
        going.transfer.wait()

    def _settle(self) -> None:
        """Ends whatever a failed sweep has left on its way."""
        present = () if self._present is None else (self._present,)
        for moving in (*present, *self._ahead, *self._going_home):
            moving.transfer.settle()
        for slab in self._slabs:
            slab.buffer.end_use()  # what the sweep has given to a device may be looking at them yet
        self._ahead.clear()
        self._going_home.clear()
        self._present = None
        self._free = list(self._slabs)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks by way of a slab; what lies behind the copied tokens is not read."""
        for copy in copies:
            for home in self._layers.values():
                if home.group == copy.group:
                    slab, place = self._free[0], np.zeros(1, dtype=np.int64)
                    home.store.read("a copy", slab, _pieces(home, place + copy.source, place, slab)).wait()
                    home.store.write("a copy", slab, _pieces(home, place + copy.target, place, slab)).wait()


def _pieces(home: LayerHome, blocks: Integers, places: Integers, slab: Slab) -> list[SlabPiece]:
    """Pairs blocks at home with places in a slab; what is consecutive in both is one piece."""
    if not len(blocks):
        return []
    num_bytes = home.record.num_bytes
    most = max(1, min(_PIECE_BLOCKS, _PIECE_BYTES // num_bytes))
    breaks = np.flatnonzero((np.diff(blocks) != 1) | (np.diff(places) != 1)) + 1
    pieces = []
    for first, end in zip([0, *breaks], [*breaks, len(blocks)], strict=True):
        for start in range(first, end, most):
            stop = min(end, start + most)
            spans = slab.spans(home.record, int(places[start]), int(places[start]) + stop - start)
            pieces.append(SlabPiece(offset=home.offset + int(blocks[start]) * num_bytes, spans=spans))
    return pieces
