"""Every architecture that is said to be exact is; every other causal language model of transformers has its reason.

`scripts/write_models_page.py` makes docs/models.md of what these tests say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.errors import UnsupportedModelError
from headrace.models.architectures import EXACT, REFUSED, check_architecture
from headrace.models.layer_table import LayerTable
from tests.parity.harness import NUM_NEW, distinct_rows, generated, tiny_engine_model
from tests.parity.test_families import MIXED, SCARCE, check
from tests.parity.test_streaming import SHAPES, assert_same_tokens, rig_of, streamed
from tests.tiny_configs import CONFIGS
from tests.tiny_models import save_tiny, write_tokenizer
from tests.tiny_types import ALL_TYPES, tiny_values

VARIANTS = sorted(name for name, values in CONFIGS.items() if values["model_type"] != name)
"""Other configurations of types: with ALiBi or without, long-RoPE, more experts."""
NAMES = [*sorted(EXACT), *VARIANTS]
IN_MAKE_TEST = ("codegen", "falcon_alibi", "gemma3n_text", "gpt_neo", "gpt_oss", "lfm2", "mpt", "nemotron_h")
"""Each needs something of its own: an adapter, shared keys, sinks, short convolutions, layers that keep nothing."""

some = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_MAKE_TEST else [pytest.mark.slow]) for name in NAMES]
)
rarely = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])


def test_every_causal_language_model_of_transformers_is_exact_or_refused_for_a_reason() -> None:
    assert sorted(EXACT | REFUSED.keys()) == sorted(ALL_TYPES)
    assert not EXACT & REFUSED.keys()


def test_at_least_107_types_are_exact() -> None:
    assert len(EXACT) >= 107


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refusal_says_why(model_type: str) -> None:
    class Configuration:
        def __init__(self) -> None:
            self.model_type = model_type

    with pytest.raises(UnsupportedModelError) as caught:
        check_architecture(Configuration())
    assert model_type in str(caught.value)
    assert REFUSED[model_type] in str(caught.value)


@some
def test_rows_that_enter_later_and_share_prefixes_are_generated_as_alone(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    model = tiny_engine_model(name)
    record_property("keeps", kept_of(model.table))
    record_property("adapters", ", ".join(sorted(adapters_in(model.module))))
    check(name, MIXED)


@rarely
def test_rows_that_lose_their_blocks_are_generated_as_alone(name: str) -> None:
    check(name, SCARCE)


@rarely
def test_streamed_weights_give_the_tokens_of_generate(name: str, tmp_path: Path) -> None:
    with streamed(name, tmp_path, "nothing") as placed:
        assert_same_tokens(name, rig_of(placed, SHAPES["many micro-batches"]), distinct_rows(every=2))


@rarely
def test_a_saved_model_is_generated_from_as_by_transformers(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    write_tokenizer(tmp_path, tiny_values("llama")["vocab_size"])
    rows = distinct_rows()
    with LLM(tmp_path, max_num_batched_tokens=128, num_micro_batches=2) as llm:
        outputs = llm.generate([row.prompt for row in rows], SamplingParams(max_tokens=NUM_NEW, temperature=0))
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        generated(name, row.prompt, row.num_new) for row in rows
    ]


def kept_of(table: LayerTable) -> str:
    """What a model keeps, in words, as the page shows it."""
    kinds = {"full": "keys and values", "sliding": "keys and values in a window", "state": "a state per row"}
    latent = {True: "latents"}
    words = [latent.get(getattr(table.memory_of(group), "latent", False), kinds[group.kind]) for group in table.groups]
    words += ["nothing in some layers"] if any(layer.memory is None for layer in table.layers) else []
    words += ["experts"] if any(layer.experts for layer in table.layers) else []
    return ", ".join(dict.fromkeys(words))


def adapters_in(model: torch.nn.Module) -> set[str]:
    """The adapters that took a module of `model` over."""
    methods = (value for module in model.modules() for value in vars(module).values() if isinstance(value, MethodType))
    names = (method.__func__.__module__ for method in methods)
    return {name.rpartition(".")[2] for name in names if name.startswith("headrace.models.adapters.")}
