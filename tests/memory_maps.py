"""What the system says of this process's mappings."""

from __future__ import annotations

import re
from pathlib import Path

HAS_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").exists()


def vm_flags(address: int) -> list[str]:
    """What proc(5) says of the mapping that has `address`."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        borders = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if borders:
            is_there = int(borders[1], 16) <= address < int(borders[2], 16)
        elif is_there and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping has {address:x}")
