"""Whether KV in the memory of a device's host is brought to the device, or attended over by the host. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRates:
    """What this machine was measured to do, per second.

    Attributes:
        link: bytes that come to the device.
        host_bytes: bytes of KV that the host attends over for rows that decode.
        host_operations: operations of its attention over a prompt.
    """

    link: float
    host_bytes: float
    host_operations: float


def host_is_faster(num_bytes: int, num_operations: int, rates: AttentionRates) -> bool:
    """Whether the host attends over `num_bytes` of KV before they would have come to the device.

    Decoding rows read much KV for few operations; a prompt's many operations are better done on the device.
    """
    seconds = max(num_bytes / rates.host_bytes, num_operations / rates.host_operations)
    return seconds < num_bytes / rates.link
