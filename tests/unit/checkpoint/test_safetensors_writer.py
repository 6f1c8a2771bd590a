"""Where tensors will lie is where they lie."""

from __future__ import annotations

from pathlib import Path

from headrace.checkpoint.safetensors_reader import read_header
from headrace.checkpoint.safetensors_writer import TensorShape, header_bytes, planned_entries


def test_a_planned_file_is_the_file_that_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    shapes = [
        TensorShape(name="a", dtype="float32", shape=(3, 5)),
        TensorShape(name="b", dtype="bfloat16", shape=()),
        TensorShape(name="c", dtype="int64", shape=(0, 4)),
        TensorShape(name="d", dtype="float16", shape=(7,)),
    ]
    planned = planned_entries(file, shapes)
    assert planned[0].offset % 64 == 0
    assert not file.exists()
    file.write_bytes(header_bytes(shapes) + bytes(sum(shape.num_bytes for shape in shapes)))
    assert sorted(read_header(file), key=lambda entry: entry.name) == planned
