"""However a checkpoint is broken, a typed error names file and tensor and says what to do."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
    UsageError,
    WeightMismatchError,
)
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_weight_map
from headrace.models.weights import WeightLoader
from tests.tiny_models import make_tiny_model, save_tiny

SHARD = "model-00002-of-"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def load(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    model = build_skeleton(path, torch.float32)
    with WeightLoader(model, build_weight_map(model, checkpoint)) as loader:
        loader.load_all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in shards of one or a few tensors."""
    save_tiny("llama", tmp_path, max_shard_size="40KB")
    load(tmp_path)
    return tmp_path


def shard_of(folder: Path, tensor: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / str(index["weight_map"][tensor])


def second_shard(folder: Path) -> Path:
    return next(folder.glob(f"{SHARD}*.safetensors"))


def truncate(file: Path, num_bytes: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - num_bytes)


def change_tensor(folder: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(shard_of(folder, tensor))
    change(state)
    save_file(state, shard_of(folder, tensor))


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def replace_weights_by_bin(folder: Path, state: object) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")


def check(folder: Path, kind: type[UsageError], *says: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(folder)
    assert type(raised.value) is kind
    message = str(raised.value)
    for words in (str(folder), *says):
        assert words in message, message
    assert "\n" not in message


@pytest.mark.parametrize("num_bytes", [1, 1000])
def test_a_truncated_shard(folder: Path, num_bytes: int) -> None:
    truncate(shard_of(folder, QUERY), num_bytes)
    check(folder, CorruptCheckpointError, shard_of(folder, QUERY).name, "truncated: tensor", "download or copy")


def test_a_shard_cut_off_within_its_header(folder: Path) -> None:
    file = second_shard(folder)
    truncate(file, file.stat().st_size - 30)
    check(folder, CorruptCheckpointError, file.name, "truncated: the header", "download or copy")


def test_an_empty_shard(folder: Path) -> None:
    second_shard(folder).write_bytes(b"")
    check(folder, CorruptCheckpointError, second_shard(folder).name, "0 bytes long", "download or copy")


def test_a_wrong_header_length(folder: Path) -> None:
    file = second_shard(folder)
    content = bytearray(file.read_bytes())
    content[:8] = (7).to_bytes(8, "little")
    file.write_bytes(content)
    check(folder, CorruptCheckpointError, file.name, "not JSON", "download or copy")


def test_a_header_whose_offsets_do_not_fit_the_shape(folder: Path) -> None:
    file = shard_of(folder, QUERY)
    file.write_bytes(file.read_bytes().replace(b"[64,64]", b"[64,63]", 1))
    check(folder, CorruptCheckpointError, file.name, "tensor model.layers.", "data_offsets", "download or copy")


def test_a_git_lfs_pointer_in_place_of_a_shard(folder: Path) -> None:
    second_shard(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    check(folder, CorruptCheckpointError, second_shard(folder).name, "git lfs pull")


def test_a_missing_shard(folder: Path) -> None:
    name = second_shard(folder).name
    second_shard(folder).unlink()
    check(folder, CheckpointNotFoundError, name, "index.json", "download or copy")


def test_a_shard_of_another_checkpoint(folder: Path) -> None:
    file = shard_of(folder, QUERY)
    save_file({"other": torch.ones(2)}, file)
    check(folder, CorruptCheckpointError, "index.json", f"{QUERY} (said to be in {file.name})")


def test_an_index_that_leads_out_of_the_folder(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, "../" + SHARD))
    check(folder, CorruptCheckpointError, "index.json", "outside the checkpoint's folder")


def test_a_missing_tensor(folder: Path) -> None:
    change_tensor(folder, QUERY, lambda state: state.pop(QUERY))
    (folder / "model.safetensors.index.json").unlink()
    check(folder, WeightMismatchError, f"1 missing: {QUERY};", "download or copy")


def test_an_unexpected_tensor(folder: Path) -> None:
    change_tensor(folder, QUERY, lambda state: state.update({"score.weight": torch.ones(2, 64)}))
    check(folder, WeightMismatchError, f"1 unexpected: {shard_of(folder, QUERY).name}: score.weight", "config.json")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change_tensor(folder, QUERY, lambda state: state.update({QUERY: torch.ones(32, 64)}))
    expected = f"{shard_of(folder, QUERY).name}: {QUERY}: shape [32, 64] in the checkpoint, [64, 64] in the model"
    check(folder, WeightMismatchError, expected, "use the config.json of these weights")


def test_a_config_of_another_model(folder: Path) -> None:
    change_config(folder, hidden_size=32, num_hidden_layers=4)
    check(
        folder, WeightMismatchError, "9 missing: model.layers.3.", "shape [97, 64] in the checkpoint, [97, 32]", "more"
    )


def test_a_pickle_with_code(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    victim = tmp_path_factory.mktemp("victim") / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(victim),)

    replace_weights_by_bin(folder, {QUERY: Evil()})
    check(folder, UnsafeCheckpointError, "pytorch_model.bin", "posix.mkdir", "use a safetensors checkpoint")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    check(folder, UnsafeCheckpointError, "pytorch_model.bin", "posix.mkdir", "use a safetensors checkpoint")
    assert not victim.exists()


def test_a_truncated_bin_file(folder: Path) -> None:
    replace_weights_by_bin(folder, make_tiny_model("llama").state_dict())
    truncate(folder / "pytorch_model.bin", 5000)
    check(folder, CorruptCheckpointError, "pytorch_model.bin", "truncated", "download or copy")


def test_a_training_state_in_place_of_weights(folder: Path) -> None:
    replace_weights_by_bin(folder, {"step": 12, "model": make_tiny_model("llama").state_dict()})
    check(folder, CorruptCheckpointError, "pytorch_model.bin", "'step' is a int", "state_dict")


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_a_quantized_checkpoint(folder: Path, method: str) -> None:
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    check(folder, UnsupportedCheckpointError, "config.json", method, "use the original checkpoint")


def test_quantized_tensors_without_a_word_in_the_config(folder: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.qweight"
    change_tensor(folder, QUERY, lambda state: state.update({name: torch.ones(8, 64, dtype=torch.int32)}))
    check(folder, UnsupportedCheckpointError, shard_of(folder, QUERY).name, name, "AWQ or GPTQ", "use the original")


def test_fp8_tensors_without_a_word_in_the_config(folder: Path) -> None:
    change_tensor(folder, QUERY, lambda state: state.update({QUERY: state[QUERY].to(torch.float8_e4m3fn)}))
    check(folder, UnsupportedCheckpointError, shard_of(folder, QUERY).name, QUERY, "FP8", "use the original")


def test_a_gguf_file(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "llama-q4_k_m.gguf").write_bytes(b"GGUF")
    check(folder, UnsupportedCheckpointError, "llama-q4_k_m.gguf", "GGUF", "use the original")


def test_no_weights_at_all(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    check(folder, CheckpointNotFoundError, "config.json without weights", "--load-format dummy")


def test_an_architecture_of_the_future(folder: Path) -> None:
    change_config(folder, model_type="llama7", transformers_version="8.0.0")
    check(folder, UnsupportedModelError, "'llama7'", "8.0.0", "install a newer transformers")


def test_all_errors_of_checkpoints_are_the_users_to_mend() -> None:
    assert issubclass(CheckpointError, UsageError)
