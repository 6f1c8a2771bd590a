"""What cannot be streamed from the checkpoint is copied once, in the form in which it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import DiskSpaceError
from headrace.models.layer_image import can_be_read
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import build_random_weight_map, build_weight_map
from headrace.models.weights import WeightLoader
from headrace.storage.folders import DiskTier
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import save_tiny


@pytest.mark.parametrize("name", TINY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_hold_what_transformers_loads(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    model = build_skeleton(tmp_path / "model", dtype)
    weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
    copied = with_copies(model, weights, DiskTier(folder=tmp_path / "copies"))
    assert not groups_to_copy(copied)
    assert all(can_be_read(source) for source in copied.parameters.values() if source.group != "rest")
    with WeightLoader(model, copied) as loader:
        loader.load_all()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_checkpoint_in_its_own_dtype_is_not_copied(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    model = build_skeleton(tmp_path / "model", torch.float32)
    weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
    assert with_copies(model, weights, DiskTier(folder=tmp_path / "copies")).parameters == weights.parameters
    assert not (tmp_path / "copies").exists()


def test_copies_are_made_once(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    notes: list[str] = []
    for _ in range(2):
        model = build_skeleton(tmp_path / "model", torch.bfloat16)
        weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
        with_copies(model, weights, DiskTier(folder=tmp_path / "copies"), notes.append)
    assert len(notes) == 1 and "once" in notes[0]


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    notes: list[str] = []
    for _ in range(2):
        model = build_skeleton(tmp_path / "model", torch.bfloat16)
        weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
        with_copies(model, weights, DiskTier(folder=tmp_path / "copies"), notes.append)
        next((tmp_path / "copies" / "weights").iterdir()).write_bytes(b"half")
    assert len(notes) == 2


def test_other_weights_have_other_copies(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    for seed in (0, 1):
        model = build_skeleton(tmp_path / "model", torch.float32)
        with_copies(model, build_random_weight_map(model, seed), DiskTier(folder=tmp_path / "copies"))
    assert len(list((tmp_path / "copies" / "weights").iterdir())) == 2 * len(
        groups_to_copy(build_random_weight_map(model, 0))
    )


def test_too_little_room_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    model = build_skeleton(tmp_path / "model", torch.bfloat16)
    weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
    with pytest.raises(DiskSpaceError, match="--disk allows 1000 B"):
        with_copies(model, weights, DiskTier(folder=tmp_path / "copies", limit_bytes=1000))
    assert not list((tmp_path / "copies").iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    model = build_skeleton(tmp_path / "model", torch.bfloat16)
    weights = build_weight_map(model, Checkpoint.open(tmp_path / "model"))
    (tmp_path / "copies").write_text("a file")
    with pytest.raises(DiskSpaceError, match="cannot write"):
        with_copies(model, weights, DiskTier(folder=tmp_path / "copies", limit_bytes=1000))
