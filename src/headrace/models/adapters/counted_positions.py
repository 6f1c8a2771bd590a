"""Tables of positions that count from the length of a cache (BART and its kin): they are told the positions instead."""

from __future__ import annotations

import inspect
from types import MethodType

from torch import Tensor, nn

from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule


def adapt(module: ForeignModule) -> bool:
    """Takes over such a table; returns whether it was one."""
    taken = inspect.signature(type(module).forward).parameters
    is_table = issubclass(type(module), nn.Embedding)
    if not is_table or not {"past_key_values_length", "position_ids"} <= taken.keys():
        return False
    module.forward = MethodType(_forward, module)
    return True


def _forward(self: ForeignModule, tokens: object, past: int = 0, position_ids: Tensor | None = None) -> Tensor:
    """The table's own forward, at the positions of the micro-batch; OPT (1, T) hands on the right ones itself."""
    is_counted = position_ids is None or position_ids.dim() == 1
    positions = current().positions[0] if is_counted else position_ids
    found: Tensor = type(self).forward(self, tokens, past, position_ids=positions)
    return found
