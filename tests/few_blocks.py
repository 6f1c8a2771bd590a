"""Engines so short of memory for keys and values that rows have to give theirs up."""

from __future__ import annotations

from headrace import LLM
from headrace.engine.moving import KVMoving
from headrace.kv_cache.manager import KVCacheManager

_PLENTY = 100


def leave_few_blocks(llm: LLM, num_blocks: int) -> KVMoving:
    """Leaves an engine so many blocks, and returns what moves them; a window beside other layers has plenty."""
    engine = llm._engine
    assert engine is not None
    groups = engine.executor.model.table.groups
    are_few = [group.window is None or len(groups) == 1 for group in groups]
    cache = KVCacheManager(groups, num_blocks=[num_blocks if few else _PLENTY for few in are_few])
    moves = engine.executor.moves
    assert isinstance(moves, KVMoving)
    engine.scheduler._cache = moves._cache = cache
    return moves
