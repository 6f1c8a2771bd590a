"""Images hold what the loader loads, from the checkpoint's own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gather import Gather, stack
from headrace.checkpoint.tensors import TensorEntry
from headrace.models.layer_image import (
    LayerImage,
    aligned_layout,
    can_be_read,
    expert_images,
    layer_image,
    row_images,
)
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import ParameterSource, WeightMap, build_weight_map
from headrace.storage.aligned import PAGE_BYTES, AlignedBuffer
from headrace.storage.disk_reader import DiskReader
from tests.tiny_models import save_tiny

KIB = 1024


def read(image: LayerImage) -> dict[str, torch.Tensor]:
    with DiskReader() as reader, AlignedBuffer(image.num_bytes) as buffer:
        reader.read(image.what, image.ranges, buffer.bytes).wait()
        return {
            tensor.name: buffer.tensor(tensor.offset, tensor.shape, getattr(torch, tensor.dtype)).clone()
            for tensor in image.tensors
        }


def mapped(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[WeightMap, dict[str, torch.Tensor]]:
    reference = save_tiny(name, folder, max_shard_size="100KB")
    return build_weight_map(build_skeleton(folder, dtype), Checkpoint.open(folder)), dict(reference.state_dict())


@pytest.mark.parametrize("name", ["llama", "opt", "bloom", "gemma2"])
def test_a_layer_is_read_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    weights, expected = mapped(name, tmp_path)
    for layer in range(weights.num_layers):
        found = read(layer_image(f"layer {layer}", weights.in_group(layer)))
        assert found.keys() == {source.name for source in weights.in_group(layer)}
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_on_a_device_every_tensor_begins_at_a_border_of_its_own(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path, dtype=torch.bfloat16)
    weights = build_weight_map(build_skeleton(tmp_path, torch.bfloat16), Checkpoint.open(tmp_path))
    image = layer_image("layer 0", weights.in_group(0))
    layout = aligned_layout(image)
    assert [(tensor.name, tensor.shape) for tensor in layout.tensors] == [
        (tensor.name, tensor.shape) for tensor in image.tensors
    ]
    assert any(tensor.offset % 256 for tensor in image.tensors)
    assert all(tensor.offset % 256 == 0 for tensor in layout.tensors)
    ends = [tensor.offset + tensor.num_bytes for tensor in layout.tensors]
    assert all(end <= after.offset for end, after in zip(ends, layout.tensors[1:], strict=False))
    assert ends[-1] <= layout.num_bytes < ends[-1] + 256


def test_neighbours_in_a_file_are_one_range(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    weights = build_weight_map(build_skeleton(tmp_path, torch.float32), Checkpoint.open(tmp_path))
    image = layer_image("layer 1", weights.in_group(1))
    assert len(image.ranges) == 1
    assert image.num_bytes <= image.read_bytes + 2 * PAGE_BYTES


def entry(file: Path, name: str, offset: int, shape: tuple[int, ...]) -> TensorEntry:
    num_bytes = 4 * torch.Size(shape).numel()
    return TensorEntry(name=name, file=file, offset=offset, num_bytes=num_bytes, dtype="float32", shape=shape)


def merged(file: Path) -> tuple[ParameterSource, torch.Tensor]:
    """Two experts' matrices of 64 KiB, apart in their file, behind an odd header, as one parameter."""
    values = torch.randn(3, 128, 128)
    file.write_bytes(b"header!" + values.numpy().tobytes())
    experts = [Gather.whole(entry(file, f"e{index}", 7 + index * 64 * KIB, (128, 128))) for index in (2, 0)]
    gather = stack(experts, 0)
    source = ParameterSource(name="experts", shape=gather.shape, dtype="float32", group=0, content=gather)
    return source, values[[2, 0]]


def test_merged_experts_are_gathered_into_place(tmp_path: Path) -> None:
    source, expected = merged(tmp_path / "f")
    assert can_be_read(source)
    assert torch.equal(read(layer_image("layer 0", [source]))["experts"], expected)


def test_every_expert_of_merged_parameters_is_an_image_of_its_own(tmp_path: Path) -> None:
    source, expected = merged(tmp_path / "f")
    images = expert_images(3, [source])
    assert [image.what for image in images] == ["expert 0 of layer 3", "expert 1 of layer 3"]
    for image, value in zip(images, expected, strict=True):
        assert torch.equal(read(image)["experts"], value)
        assert image.read_bytes == 64 * KIB


def test_a_tensor_at_an_odd_place_of_its_file_is_moved_to_an_even_one(tmp_path: Path) -> None:
    value = torch.randn(30, 5)
    (tmp_path / "f").write_bytes(b"odd" + value.numpy().tobytes())
    source = ParameterSource(
        name="w",
        shape=(30, 5),
        dtype="float32",
        group=0,
        content=Gather.whole(entry(tmp_path / "f", "w", 3, (30, 5))),
    )
    assert torch.equal(read(layer_image("layer 0", [source]))["w"], value)


def test_other_dtypes_and_small_pieces_cannot_be_read(tmp_path: Path) -> None:
    weights, _ = mapped("llama", tmp_path / "a", torch.bfloat16)
    assert not any(can_be_read(source) for source in weights.in_group(0))
    weights, _ = mapped("mixtral", tmp_path / "b")
    assert not all(can_be_read(source) for source in weights.in_group(0))


def test_rows_of_a_head_come_in_images_of_a_bounded_size(tmp_path: Path) -> None:
    weights, expected = mapped("llama", tmp_path)
    limit = 2 * PAGE_BYTES + 30 * 64 * 4
    images = row_images("head", weights.in_group("head"), limit)
    assert len(images) == 4
    assert all(image.num_bytes <= limit + PAGE_BYTES for image in images)
    rows = torch.cat([read(image)["lm_head.weight"] for image in images])
    assert torch.equal(rows, expected["lm_head.weight"])
