"""The compressed-tensors format: what is read of it, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.checkpoint.packed_tensors import PackedScheme, fold_packed, read_scheme
from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry
from headrace.errors import CorruptCheckpointError, UnsupportedCheckpointError

CONFIG = Path("config.json")
INT8 = PackedScheme(num_bits=8, group_size=None)
INT4 = PackedScheme(num_bits=4, group_size=64)


def entry(name: str, dtype: str, *shape: int) -> TensorEntry:
    size = DTYPE_BYTES[dtype]
    for length in shape:
        size *= length
    return TensorEntry(name=name, file=Path("model.safetensors"), offset=0, num_bytes=size, dtype=dtype, shape=shape)


def int4_entries(num_outputs: int = 96, num_inputs: int = 128) -> dict[str, TensorEntry]:
    found = [
        entry("up.weight_packed", "int32", num_outputs, num_inputs // 8),
        entry("up.weight_scale", "bfloat16", num_outputs, num_inputs // 64),
        entry("up.weight_zero_point", "int32", num_outputs // 8, num_inputs // 64),
        entry("up.weight_shape", "int64", 2),
        entry("norm.weight", "bfloat16", 128),
    ]
    return {one.name: one for one in found}


@pytest.mark.parametrize("scheme", [INT8, INT4, PackedScheme(num_bits=4, group_size=128)])
def test_what_is_written_is_read(scheme: PackedScheme) -> None:
    assert read_scheme(CONFIG, {"quantization_config": scheme.to_config(["lm_head"])}) == scheme


def test_a_configuration_without_quantization_has_no_scheme() -> None:
    assert read_scheme(CONFIG, {"model_type": "llama"}) is None
    assert read_scheme(CONFIG, {"quantization_config": {}}) is None


def changed(scheme: PackedScheme, part: str, **values: object) -> dict[str, object]:
    settings = scheme.to_config([])
    groups = settings["config_groups"]
    assert isinstance(groups, dict)
    group = groups["group_0"]
    target = settings if part == "settings" else group if part == "group" else group[part]
    target.update(values)
    return settings


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4},
        changed(INT4, "settings", kv_cache_scheme={"num_bits": 8}),
        changed(INT4, "settings", format="nvfp4-pack-quantized"),
        changed(INT4, "weights", num_bits=3),
        changed(INT4, "weights", actorder="group"),
        changed(INT4, "weights", group_size=20),
        changed(INT4, "weights", type="float"),
        changed(INT4, "group", targets=["re:.*q_proj"]),
        changed(INT8, "weights", symmetric=False),
        changed(INT8, "group", input_activations=None),
    ],
    ids=str,
)
def test_other_forms_are_refused_with_what_to_do(settings: Mapping[str, object]) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"expected compressed-tensors .* use the original checkpoint"):
        read_scheme(CONFIG, {"quantization_config": settings})


def test_tensors_of_a_weight_become_one_of_its_name_and_shape() -> None:
    entries, packed = fold_packed(int4_entries(), INT4)
    assert set(entries) == {"up.weight", "norm.weight"}
    assert (entries["up.weight"].shape, entries["up.weight"].dtype) == ((96, 128), "bfloat16")
    assert packed["up.weight"].codes.name == "up.weight_packed"
    assert packed["up.weight"].zeros is not None


def test_8_bits_keep_their_shape() -> None:
    parts = [entry("up.weight", "int8", 96, 128), entry("up.weight_scale", "bfloat16", 96, 1)]
    entries, packed = fold_packed({one.name: one for one in parts}, INT8)
    assert (entries["up.weight"].shape, entries["up.weight"].dtype) == ((96, 128), "bfloat16")
    assert packed["up.weight"].codes.dtype == "int8"


@pytest.mark.parametrize("part", ["up.weight_packed", "up.weight_scale"])
def test_a_weight_without_one_of_its_parts_is_corrupt(part: str) -> None:
    entries = int4_entries()
    del entries[part]
    if part == "up.weight_packed":
        # Nothing else says that there was a packed weight: its other parts have no place in the model.
        assert "up.weight_scale" in fold_packed(entries, INT4)[0]
        return
    with pytest.raises(CorruptCheckpointError, match=r"up has no scales; download"):
        fold_packed(entries, INT4)


@pytest.mark.parametrize(
    ("part", "shape"),
    [("up.weight_scale", (96, 3)), ("up.weight_zero_point", (96, 2)), ("up.weight_packed", (96, 17))],
)
def test_parts_that_do_not_go_together_are_corrupt(part: str, shape: tuple[int, ...]) -> None:
    entries = int4_entries()
    entries[part] = replace(entries[part], shape=shape)
    with pytest.raises(CorruptCheckpointError, match="is no weight of 4 bits in groups of 64"):
        fold_packed(entries, INT4)
