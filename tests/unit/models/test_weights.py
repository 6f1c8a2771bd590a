"""Loaded weights are those that transformers loads, bit for bit, for every family and way of storing them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import BudgetError, CorruptCheckpointError
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_random_weight_map, build_weight_map
from headrace.models.weights import WeightLoader, allocate_on, move_buffers
from headrace.storage.aligned import HUGE_PAGE_BYTES
from tests.memory_maps import HAS_HUGE_PAGES, vm_flags
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model, save_tiny

FAMILIES = pytest.mark.parametrize("name", TINY_CONFIGS)
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = build_skeleton(path, dtype)
    with WeightLoader(model, build_weight_map(model, Checkpoint.open(path))) as loader:
        loader.load_all()
    return model


def assert_same(model: PreTrainedModel, reference: torch.nn.Module) -> None:
    state, expected = model.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key
    buffers = dict(model.named_buffers())
    for key, value in reference.named_buffers():
        assert buffers[key].dtype == value.dtype, key
        assert torch.equal(buffers[key], value), key


@FAMILIES
def test_sharded_safetensors_load_as_in_transformers(name: str, tmp_path: Path) -> None:
    reference = save_tiny(name, tmp_path, max_shard_size="40KB")
    model = load(tmp_path)
    assert_same(model, reference)
    with torch.no_grad():
        logits, expected = (each(PROMPT, use_cache=False).logits for each in (model, reference))
    assert torch.equal(logits, expected)


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_float32_is_converted_as_in_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    assert_same(load(tmp_path, dtype), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype))


@pytest.mark.slow
@FAMILIES
def test_bfloat16_is_converted_as_in_transformers(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path, dtype=torch.bfloat16)
    assert_same(load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_bin_files_load_as_in_transformers(name: str, zipped: bool, tmp_path: Path) -> None:
    reference = make_tiny_model(name)
    reference.config.save_pretrained(tmp_path)
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(load(tmp_path), reference)


@pytest.mark.slow
@FAMILIES
def test_a_missing_base_prefix_is_added(name: str, tmp_path: Path) -> None:
    reference = make_tiny_model(name)
    prefix = reference.base_model_prefix + "."
    state = {key.removeprefix(prefix): value for key, value in reference.state_dict().items()}
    reference.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(load(tmp_path), reference)


@pytest.mark.parametrize(
    "name", ["stories260k-hf", "babyllama361-hf", "gpt-nano-sort-opt-hf", "stories260k-mixtral8-hf"]
)
def test_trained_models_load_as_in_transformers(name: str, shared_data: Path) -> None:
    path = shared_data / "models" / name
    assert_same(load(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))


def test_transposed_tensors_of_a_bin_file_are_put_in_order(tmp_path: Path) -> None:
    reference = make_tiny_model("llama")
    state = {
        key: value.T.contiguous().T if value.dim() == 2 else value for key, value in reference.state_dict().items()
    }
    reference.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert any(entry.strides for entry in Checkpoint.open(tmp_path).entries.values())
    assert_same(load(tmp_path), reference)


def test_a_group_is_loaded_and_released_alone(tmp_path: Path) -> None:
    reference = save_tiny("llama_tied", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    weight_map = build_weight_map(model, Checkpoint.open(tmp_path))

    def loaded() -> set[str]:
        return {key for key, value in model.state_dict().items() if not value.is_meta}

    with WeightLoader(model, weight_map) as loader:
        assert loaded() == set()
        assert loader.load(1) == weight_map.group_bytes(1)
        assert loaded() == {key for key in reference.state_dict() if key.startswith("model.layers.1.")}
        loader.load("embedding")
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= loaded()
        loader.release(1)
        loader.release("embedding")
        assert loaded() == set()
        loader.load_all()
    assert_same(model, reference)


def test_tied_parameters_share_one_tensor(tmp_path: Path) -> None:
    save_tiny("llama_tied", tmp_path)
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_byte_of_a_parameter_comes_from_the_allocator(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    model = build_skeleton(tmp_path, torch.bfloat16)
    weight_map = build_weight_map(model, Checkpoint.open(tmp_path))
    made: list[torch.Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    with WeightLoader(model, weight_map, allocate=allocate) as loader:
        loader.load_all()
    assert sum(tensor.nbytes for tensor in made) == weight_map.num_bytes
    assert {tensor.data_ptr() for tensor in made} == {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="no huge pages here")
def test_large_weights_ask_for_huge_pages_and_small_ones_do_not() -> None:
    allocate = allocate_on(torch.device("cpu"))
    large, small = allocate((HUGE_PAGE_BYTES // 2,), torch.bfloat16), allocate((64,), torch.bfloat16)
    assert "hg" in vm_flags(large.data_ptr()) and "hg" not in vm_flags(small.data_ptr())
    assert large.shape == (HUGE_PAGE_BYTES // 2,) and large.fill_(1).sum() == HUGE_PAGE_BYTES // 2


def test_released_memory_is_free(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    finalised = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            nonlocal finalised
            finalised += 1

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).as_subclass(Counted)

    weight_map = build_weight_map(model, Checkpoint.open(tmp_path))
    with WeightLoader(model, weight_map, allocate=allocate) as loader:
        loader.load(0)
        before = finalised
        loader.release(0)
        gc.collect()
    assert finalised >= before + len(weight_map.in_group(0))


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    weight_map = build_weight_map(model, Checkpoint.open(tmp_path))
    seen: list[tuple[int, int]] = []
    with WeightLoader(model, weight_map) as loader:
        loader.load_all(lambda done, total: seen.append((done, total)))
    assert len(seen) == len(weight_map.groups)
    assert seen == sorted(seen)
    assert seen[-1] == (weight_map.num_bytes, weight_map.num_bytes)


def test_a_refused_allocation_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    calls = 0

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise BudgetError("no room")
        return torch.empty(shape, dtype=dtype)

    with (
        WeightLoader(model, build_weight_map(model, Checkpoint.open(tmp_path)), allocate=allocate) as loader,
        pytest.raises(BudgetError),
    ):
        loader.load(0)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_file_truncated_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    weight_map = build_weight_map(model, Checkpoint.open(tmp_path))
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with (
        WeightLoader(model, weight_map) as loader,
        pytest.raises(CorruptCheckpointError, match="truncated while in use"),
    ):
        loader.load_all()


@pytest.mark.slow
@FAMILIES
def test_random_weights_run_and_repeat(name: str, tmp_path: Path) -> None:
    make_tiny_model(name).config.save_pretrained(tmp_path)
    logits = []
    for seed in (0, 0, 1):
        model = build_skeleton(tmp_path, torch.float32)
        with WeightLoader(model, build_random_weight_map(model, seed)) as loader:
            loader.load_all()
        with torch.no_grad():
            logits.append(model(PROMPT, use_cache=False).logits)
    assert logits[0].isfinite().all()
    assert logits[0].std() > 0
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_buffers_move_to_the_device(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    move_buffers(model, torch.device("meta"))
    assert all(buffer.is_meta for buffer in model.buffers())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama_tied", "mixtral", "deepseek_v3"])
def test_weights_are_loaded_onto_a_gpu(name: str, tmp_path: Path) -> None:
    reference = save_tiny(name, tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    device = torch.device("cuda")

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    with WeightLoader(model, build_weight_map(model, Checkpoint.open(tmp_path)), allocate=allocate) as loader:
        loader.load_all()
    move_buffers(model, device)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert_same(model.cpu(), reference)
