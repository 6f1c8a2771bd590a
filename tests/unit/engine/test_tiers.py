"""Options that would do nothing on the device that was chosen are refused."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from headrace.engine.options import EngineOptions
from headrace.engine.tiers import open_tiers
from headrace.errors import OptionError

SIMULATED = "simulated:1GiB,20GB/s"


@pytest.mark.parametrize(
    ("device", "given", "message"),
    [
        ("cpu", {"gpu_memory_bytes": 1 << 30}, "--gpu-memory"),
        (SIMULATED, {"gpu_memory_bytes": 1 << 30}, "--gpu-memory"),
        (SIMULATED, {"pin_memory": False}, "nothing to pin"),
        ("cpu", {"activations_on_device": 0.5}, "where all activations are"),
        ("cpu", {"weights_on_host": 0.5}, "with weights_on_device"),
        ("cpu", {"kv_on_host": 1.0}, "with kv_on_device"),
        ("cpu", {"attend_on_host": True}, "wherever the KV lies"),
    ],
)
def test_what_would_have_no_effect_is_refused(device: str, given: dict[str, Any], message: str) -> None:
    with ExitStack() as opened, pytest.raises(OptionError, match=message):
        open_tiers(EngineOptions(model="demo", device=device, **given), opened)


def test_shares_of_the_host_mean_something_where_it_is_a_tier() -> None:
    options = EngineOptions(model="demo", device=SIMULATED, weights_on_host=0.5, kv_on_host=0, activations_on_device=0)
    with ExitStack() as opened:
        assert not open_tiers(options, opened).are_one
