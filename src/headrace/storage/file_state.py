"""Whether a file is still what it was when it was opened."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes with every ordinary change of a file's content; two looks at an unchanged file are equal."""

    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """Looks at an open file, which keeps its content when its name is deleted or goes to another file."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)
