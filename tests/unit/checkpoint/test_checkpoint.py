from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def shard(folder: Path, number: int, of: int, *names: str) -> str:
    file_name = f"model-{number:05d}-of-{of:05d}.safetensors"
    save_file(dict.fromkeys(names, MATRIX), folder / file_name)
    return file_name


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_is_opened(folder: Path) -> None:
    save_file({"a": MATRIX}, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.format == "safetensors"
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.num_bytes == 24
    buffer = bytearray(24)
    checkpoint.read_into(checkpoint.entries["a"], memoryview(buffer))
    assert bytes(buffer) == MATRIX.tobytes()


def test_shards_with_an_index_are_opened(folder: Path) -> None:
    write_index(folder, {"a": shard(folder, 1, 2, "a"), "b": shard(folder, 2, 2, "b", "extra")})
    assert Checkpoint.open(folder).entries.keys() == {"a", "b", "extra"}


def test_shards_without_an_index_are_opened(folder: Path) -> None:
    shard(folder, 1, 2, "a")
    shard(folder, 2, 2, "b")
    assert Checkpoint.open(folder).entries.keys() == {"a", "b"}


def test_a_gap_in_shards_without_an_index_is_noticed(folder: Path) -> None:
    shard(folder, 1, 3, "a")
    shard(folder, 3, 3, "b")
    with pytest.raises(CheckpointNotFoundError, match="shards 2 of 3 are missing"):
        Checkpoint.open(folder)


def test_safetensors_are_preferred_to_bin(folder: Path) -> None:
    save_file({"a": MATRIX}, folder / "model.safetensors")
    torch.save({"b": torch.ones(2)}, folder / "pytorch_model.bin")
    assert Checkpoint.open(folder).entries.keys() == {"a"}


def test_bin_files_are_opened_where_there_is_nothing_else(folder: Path) -> None:
    torch.save({"b": torch.ones(2)}, folder / "pytorch_model.bin")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.format == "torch_bin"
    assert checkpoint.entries["b"].shape == (2,)


def test_files_of_another_loader_beside_the_model_are_left_alone(folder: Path) -> None:
    save_file({"a": MATRIX}, folder / "model.safetensors")
    save_file({"b": MATRIX}, folder / "consolidated.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert Checkpoint.open(folder).entries.keys() == {"a"}


def test_missing_shards_are_listed(folder: Path) -> None:
    write_index(folder, {"a": shard(folder, 1, 3, "a"), "b": "model-00002-of-00003.safetensors", "c": "x.safetensors"})
    with pytest.raises(CheckpointNotFoundError, match=r"2 of 3 .*model-00002-of-00003\.safetensors, x\.safetensors"):
        Checkpoint.open(folder)


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(folder: Path) -> None:
    write_index(folder, {"a": shard(folder, 1, 1, "a"), "b": "model-00001-of-00001.safetensors"})
    with pytest.raises(CorruptCheckpointError, match=r"index\.json: 1 tensors .*: b \(said to be in"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shard(folder, 1, 2, "a")
    shard(folder, 2, 2, "a")
    with pytest.raises(CorruptCheckpointError, match=r"tensor a is in .*00001-of.* and again in .*00002-of"):
        Checkpoint.open(folder)


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such directory"):
        Checkpoint.open(tmp_path / "gone")


def test_a_weights_file_instead_of_its_folder_is_explained(folder: Path) -> None:
    save_file({"a": MATRIX}, folder / "model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=f"give its folder: {folder}"):
        Checkpoint.open(folder / "model.safetensors")


def test_a_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(b"GGUF")
    for path in (file, tmp_path):
        with pytest.raises((UnsupportedCheckpointError, CheckpointNotFoundError), match=r"q4\.gguf: GGUF .*original"):
            Checkpoint.open(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_config.json", "LoRA adapter"),
        ("params.json", "original files"),
        ("notes.txt", "Hugging Face checkpoint"),
    ],
)
def test_a_folder_without_a_config_is_explained(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointNotFoundError, match=says):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["tf_model.h5", "flax_model.msgpack", "consolidated.00.pth", "adapter_model.safetensors"]
)
def test_weights_of_another_format_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(UnsupportedCheckpointError, match=name):
        Checkpoint.open(folder)


def test_a_config_without_weights_suggests_random_ones(folder: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="--load-format dummy"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_a_quantized_config_is_refused_by_its_method(folder: Path, method: str) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    save_file({"a": MATRIX}, folder / "model.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match=rf"config\.json: .*\({method}\).*original checkpoint"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "weight_packed", "weight_scale_inv"])
def test_quantized_tensors_are_recognised_without_a_config(folder: Path, suffix: str) -> None:
    save_file({f"layer.{suffix}": MATRIX}, folder / "model.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match=rf"model\.safetensors: tensor layer\.{suffix} is quantized"):
        Checkpoint.open(folder)


def test_fp8_tensors_are_recognised(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UnsupportedCheckpointError, match=r"tensor w is quantized \(FP8"):
        Checkpoint.open(folder)


def test_opening_a_checkpoint_does_not_import_torch(folder: Path) -> None:
    save_file({"a": MATRIX}, folder / "model.safetensors")
    code = (
        "import sys; from headrace.checkpoint.checkpoint import Checkpoint; import headrace.checkpoint.gather; "
        f"Checkpoint.open({str(folder)!r}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
