"""What waiting micro-batches keep from one layer to the next: on the device, or sent to its host until their turn.

A sent activation's storage is emptied and filled again, so that the model's own tensors stay what they are. It passes a
slot: the device copies it there, and the slot is what the link reads and writes. So its memory is free at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, UntypedStorage

from headrace.storage.link import Buffer, Link
from headrace.storage.transfer import Transfer

NUM_SLOTS = 3
"""One on its way here, and two on their way to the host."""
_ALIGNMENT = 64


class Activations(Protocol):
    """Makes the activations of micro-batches present in their turns."""

    def begin(self, num_tokens: Sequence[int], turns: Sequence[int]) -> None:
        """Learns how many tokens each micro-batch of a sweep has, and the order of their turns."""

    def bring(self, micro_batch: int) -> None:
        """Begins the next turn, which is `micro_batch`'s; returns when work of the device finds its activations."""

    def send(self, micro_batch: int, kept: Sequence[Tensor]) -> None:
        """Ends the turn: `kept` are not looked at before the next one."""

    def end(self) -> None:
        """Forgets what a sweep has left."""

    def close(self) -> None:
        """Gives memory back; a second call does nothing."""


class ActivationsStay:
    """All activations stay on the device."""

    def begin(self, num_tokens: Sequence[int], turns: Sequence[int]) -> None:
        pass

    def bring(self, micro_batch: int) -> None:
        pass

    def send(self, micro_batch: int, kept: Sequence[Tensor]) -> None:
        pass

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Sent:
    """Activations of one micro-batch that are not where they belong.

    Attributes:
        storages: each with its size and its place in a slot.
        slot: that holds them, or will when `transfer` has arrived; None while only the host has them.
    """

    storages: list[tuple[UntypedStorage, int, int]]
    num_bytes: int
    slot: Buffer | None
    transfer: Transfer


class ActivationsBelow:
    """Sends activations to the host at the end of a turn, and begins to bring the next micro-batch's at the start."""

    def __init__(self, link: Link, *, slot_bytes: int, host_bytes: int, share_on_device: float) -> None:
        """Takes memory on both sides.

        Args:
            slot_bytes: for the activations of one micro-batch; what is larger stays on the device.
            host_bytes: for those of all micro-batches of a sweep.
            share_on_device: of the micro-batches of a sweep, the first ones, whose activations stay.
        """
        self._link = link
        self._share = share_on_device
        self._slot_bytes = slot_bytes
        self._slots = [link.device_memory(slot_bytes) for _ in range(NUM_SLOTS)]
        self._host = link.host_memory(host_bytes)
        self._free = list(self._slots)
        self._leaving: deque[tuple[Buffer, Transfer]] = deque()
        self._sent: dict[int, _Sent] = {}
        self._starts: list[int] = []
        self._turns: Sequence[int] = ()
        self._turn = -1
        self._num_staying = 0

    def begin(self, num_tokens: Sequence[int], turns: Sequence[int]) -> None:
        self.end()
        share, total = self._host.num_bytes / max(1, sum(num_tokens)), 0
        self._starts = []
        for count in num_tokens:
            self._starts.append(int(total * share) // _ALIGNMENT * _ALIGNMENT)
            total += count
        self._starts.append(self._host.num_bytes)
        self._turns, self._turn = turns, -1
        self._num_staying = round(self._share * len(num_tokens))

    def bring(self, micro_batch: int) -> None:
        self._turn += 1
        sent = self._sent.pop(micro_batch, None)
        if sent is not None:
            self._refill(micro_batch, sent)
        upcoming = self._upcoming
        if upcoming in self._sent and self._sent[upcoming].slot is None:
            self._fetch(upcoming, self._sent[upcoming])

    def send(self, micro_batch: int, kept: Sequence[Tensor]) -> None:
        if micro_batch < self._num_staying or self._upcoming in (micro_batch, None):
            return
        room = min(self._slot_bytes, self._starts[micro_batch + 1] - self._starts[micro_batch])
        storages, end = [], 0
        for storage in {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in kept}.values():
            num_bytes = storage.nbytes()
            if num_bytes and end + num_bytes <= room:
                storages.append((storage, num_bytes, end))
                end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if not storages:
            return
        slot, num_bytes = self._take_slot(), min(end, room)
        for storage, size, offset in storages:
            slot.tensor(offset, (size,), torch.uint8).copy_(_bytes_of(storage, kept[0].device))
            storage.resize_(0)  # the device makes the copy before it gives the memory to later work
        host = self._host.bytes[self._starts[micro_batch] : self._starts[micro_batch] + num_bytes]
        transfer = self._link.download(f"activations of micro-batch {micro_batch}", slot, [(0, host)])
        slot.end_use()
        self._leaving.append((slot, transfer))
        self._sent[micro_batch] = _Sent(storages, num_bytes, slot, transfer)

    def end(self) -> None:
        for sent in self._sent.values():
            sent.transfer.settle()
        for _, transfer in self._leaving:
            transfer.settle()
        self._sent.clear()
        self._leaving.clear()
        self._free = list(self._slots)
        for slot in self._slots:
            slot.end_use()  # what a failed sweep has given to the device may be looking at them yet

    def close(self) -> None:
        self.end()
        for buffer in (*self._slots, self._host):
            buffer.close()
        self._slots, self._free = [], []

    @property
    def _upcoming(self) -> int | None:
        """Whose turn comes next."""
        return self._turns[self._turn + 1] if self._turn + 1 < len(self._turns) else None

    def _refill(self, micro_batch: int, sent: _Sent) -> None:
        if sent.slot is None:
            self._fetch(micro_batch, sent)
        slot = sent.slot
        assert slot is not None
        is_leaving = any(slot is other for other, _ in self._leaving)
        if not is_leaving:
            sent.transfer.wait()
        for storage, size, offset in sent.storages:
            storage.resize_(size)
            source = slot.tensor(offset, (size,), torch.uint8)
            _bytes_of(storage, source.device).copy_(source)
        slot.end_use()
        if not is_leaving:
            self._free.append(slot)

    def _fetch(self, micro_batch: int, sent: _Sent) -> None:
        """Begins to bring what only the host has."""
        sent.slot = self._take_slot()
        start = self._starts[micro_batch]
        host = self._host.bytes[start : start + sent.num_bytes]
        sent.transfer = self._link.upload(f"activations of micro-batch {micro_batch}", sent.slot, [(0, host)])

    def _take_slot(self) -> Buffer:
        """Returns a free slot: where there is none, the one that has been on its way to the host for longest."""
        while not self._free:
            slot, transfer = self._leaving.popleft()
            transfer.wait()
            for sent in self._sent.values():
                if sent.slot is slot:
                    sent.slot = None
            self._free.append(slot)
        return self._free.pop()


def slot_bytes(num_tokens: int, bytes_per_token: int) -> int:
    """Returns what a slot for activations of `num_tokens` takes."""
    return num_tokens * bytes_per_token + 2 * _ALIGNMENT


def _bytes_of(storage: UntypedStorage, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
