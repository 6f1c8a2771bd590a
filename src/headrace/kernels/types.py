"""The dtypes that the library reads and writes."""

from __future__ import annotations

import torch

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`headrace::Type` of types.h."""
