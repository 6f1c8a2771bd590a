"""Mixers with recurrent memory (gated delta-net, Mamba) on state slots instead of a cache object.

A mixer handles batches of equally long sequences, so the chunks of a micro-batch run in such batches: all decoding
rows in one call, a prefill chunk alone. Each batch reads copies of its source slots and writes its target slots; the
sources stay as they are, so an abandoned sweep leaves no trace.
"""

from __future__ import annotations

import inspect
from types import MethodType

import torch
from torch import Tensor

from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule

_CACHE_NAMES = ("cache_params", "past_key_values")
_ONE_BY_ONE = ("FalconMambaMixer", "JambaMambaMixer", "MambaMixer")
"""Mamba-1 goes on from a state only with one token at a time: of several, transformers starts at the zero state."""


def adapt(module: ForeignModule) -> bool:
    """Takes over a state mixer; returns whether it was one."""
    own = inspect.unwrap(type(module).forward)
    if "get_conv_state" not in own.__code__.co_names:
        return False
    module.forward = MethodType(_forward, module)
    return True


def _forward(self: ForeignModule, hidden_states: Tensor, **_: object) -> Tensor:
    """(1, T, E) -> (1, T, E)."""
    micro_batch = current()
    output: Tensor | None = None
    for batch in micro_batch.state_batches(self.layer_idx):
        memory = _BatchMemory(micro_batch.load_state(self.layer_idx, batch))
        mixed = _mix(self, hidden_states[0, batch.tokens], memory)
        micro_batch.store_state(self.layer_idx, batch, *memory.states())
        if output is None:
            output = mixed.new_empty(*hidden_states.shape[:2], mixed.shape[-1])
        output[0, batch.tokens] = mixed
    assert output is not None, "a micro-batch has at least one chunk"
    return output


def _mix(self: ForeignModule, states: Tensor, memory: _BatchMemory) -> Tensor:
    """Runs the mixer's own code: (R, n, E) -> (R, n, E)."""
    alone = memory.has_previous_state() and type(self).__name__ in _ONE_BY_ONE
    pieces = states.unbind(1) if alone else (states,)
    taken = inspect.signature(type(self).forward).parameters
    cache_name = next(name for name in _CACHE_NAMES if name in taken)
    given = {cache_name: memory, "attention_mask": None}
    return torch.cat(
        [type(self).forward(self, piece.view(len(states), -1, states.shape[-1]), **given) for piece in pieces], 1
    )


class _BatchMemory:
    """The part of transformers' cache protocol that a state mixer uses, for one batch."""

    def __init__(self, past: tuple[Tensor, Tensor] | None) -> None:
        self._has_past = past is not None
        self._conv: Tensor | None = None
        self._recurrent: Tensor | None = None
        if past is not None:
            self._conv, self._recurrent = past

    def get_conv_state(self, *_: object, **__: object) -> Tensor | None:
        return self._conv

    def get_recurrent_state(self, *_: object, **__: object) -> Tensor | None:
        return self._recurrent

    def has_previous_state(self, *_: object, **__: object) -> bool:
        return self._has_past

    def is_recording_past(self, *_: object, **__: object) -> bool:
        return False

    def update_conv_state(self, states: Tensor, *_: object, conv_kernel_size: int, **__: object) -> Tensor:
        """Returns everything the convolution has to see: states (R, channels, n) behind the kernel's past."""
        if self._conv is None:
            missing = max(0, conv_kernel_size - states.shape[-1])
            states = torch.nn.functional.pad(states, (missing, 0))
        else:
            states = torch.cat([self._conv, states], dim=-1)
        self._conv = states[..., -conv_kernel_size:]
        return states

    def update_recurrent_state(self, state: Tensor, *_: object, **__: object) -> Tensor:
        self._recurrent = state
        return state

    def states(self) -> tuple[Tensor, Tensor]:
        """Returns the convolution and the recurrent states that the mixer has left."""
        assert self._conv is not None, "the mixer left no state"
        nothing = self._conv.new_empty(len(self._conv), 0)  # a short convolution keeps nothing else
        return self._conv, nothing if self._recurrent is None else self._recurrent
