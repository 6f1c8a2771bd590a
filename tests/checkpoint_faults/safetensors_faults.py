"""Faults of safetensors files and of the index that names them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from headrace.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    WeightMismatchError,
)
from tests.checkpoint_faults.fault import (
    INDEX,
    NORM,
    QUERY,
    WEIGHTS,
    Corpus,
    change_entry,
    change_index,
    change_tensors,
    flip_bit,
    keep_bytes,
    read_header,
    shard_of,
    write_header,
)

SAFETENSORS_FAULTS = Corpus()
fault = SAFETENSORS_FAULTS.fault


@fault("single", CorruptCheckpointError, WEIGHTS, "0 bytes long")
def an_empty_weights_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@fault("single", CorruptCheckpointError, WEIGHTS, "7 bytes long")
def a_weights_file_shorter_than_its_length_field(folder: Path) -> None:
    keep_bytes(folder / WEIGHTS, 7)


@fault("single", CorruptCheckpointError, WEIGHTS, "truncated: the header")
def weights_cut_off_within_the_header(folder: Path) -> None:
    keep_bytes(folder / WEIGHTS, 100)


@fault("single", CorruptCheckpointError, WEIGHTS, "truncated: tensor")
def weights_that_lack_their_last_byte(folder: Path) -> None:
    keep_bytes(folder / WEIGHTS, -1)


@fault("single", CorruptCheckpointError, WEIGHTS, "truncated: tensor")
def weights_cut_off_in_the_middle(folder: Path) -> None:
    keep_bytes(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


@fault("single", CorruptCheckpointError, WEIGHTS, "16 bytes follow the last tensor")
def weights_with_bytes_behind_the_last_tensor(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(bytes(16))


@fault("single", CorruptCheckpointError, WEIGHTS, "does not begin with a safetensors header")
def a_header_that_declares_exabytes(folder: Path) -> None:
    flip_bit(folder / WEIGHTS, 7, 6)


@fault("single", CorruptCheckpointError, WEIGHTS, "truncated: the header alone takes 90000008 bytes")
def a_header_that_declares_90_megabytes(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((90_000_000).to_bytes(8, "little") + content[8:])


@fault("single", CorruptCheckpointError, WEIGHTS, "header is not JSON")
def a_header_length_with_a_flipped_bit(folder: Path) -> None:
    flip_bit(folder / WEIGHTS, 0, 3)


@fault("single", CorruptCheckpointError, WEIGHTS, "header is not JSON")
def a_header_length_of_zero(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes(8) + (folder / WEIGHTS).read_bytes()[8:])


@fault("single", CorruptCheckpointError, WEIGHTS, "does not begin with a safetensors header")
def a_header_whose_first_byte_has_a_flipped_bit(folder: Path) -> None:
    flip_bit(folder / WEIGHTS, 8)


@fault("single", CorruptCheckpointError, WEIGHTS, "header is not JSON.*utf-8")
def a_header_that_is_not_utf_8(folder: Path) -> None:
    header, data = read_header(folder / WEIGHTS)
    write_header(folder / WEIGHTS, json.dumps(header).encode().replace(b"layers", b"lay\xffrs", 1), data)


@fault("single", CorruptCheckpointError, WEIGHTS, "header is not JSON")
def a_header_in_utf_16(folder: Path) -> None:
    header, data = read_header(folder / WEIGHTS)
    write_header(folder / WEIGHTS, json.dumps(header).encode("utf-16-le"), data)


@fault("single", CorruptCheckpointError, WEIGHTS, "header is not JSON.*recursion")
def a_header_that_is_nested_without_end(folder: Path) -> None:
    write_header(folder / WEIGHTS, b'{"a":' + b"[" * 200_000, b"")


@fault("single", CorruptCheckpointError, WEIGHTS, f"{QUERY[-10:]}. twice")
def a_header_that_names_a_tensor_twice(folder: Path) -> None:
    header, data = read_header(folder / WEIGHTS)
    text = json.dumps(header)
    write_header(folder / WEIGHTS, (text[:-1] + f', "{QUERY}": {json.dumps(header[QUERY])}}}').encode(), data)


@fault("single", CorruptCheckpointError, WEIGHTS, "'last' twice")
def a_header_of_thirty_thousand_names_of_which_two_are_equal(folder: Path) -> None:
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = [*map(str, range(30_000)), "last", "last"]
    write_header(folder / WEIGHTS, ("{" + ",".join(f'"{name}":{empty}' for name in names) + "}").encode(), b"")


@fault("single", CorruptCheckpointError, WEIGHTS, "lacks dtype, shape or data_offsets")
def a_header_entry_without_a_dtype(folder: Path) -> None:
    header, data = read_header(folder / WEIGHTS)
    del header[QUERY]["dtype"]
    write_header(folder / WEIGHTS, header, data)


@fault("single", UnsupportedCheckpointError, WEIGHTS, rf"{QUERY} has dtype 'F3\?'", "bfloat16, float16 or float32")
def a_header_with_an_unknown_dtype(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, dtype="F3?")


@fault("single", CorruptCheckpointError, WEIGHTS, rf"tensor {QUERY}: shape .* is 8192 bytes.*span 16384")
def a_header_with_the_dtype_of_another_width(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, dtype="BF16")


@fault("single", WeightMismatchError, WEIGHTS, f"{QUERY}: dtype int32 cannot become float32", "config.json")
def a_header_with_a_dtype_of_the_same_width(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, dtype="I32")


@fault("single", CorruptCheckpointError, WEIGHTS, f"tensor {QUERY}: shape .*-64.* cannot be")
def a_header_with_a_negative_size(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, shape=[-64, -64])


@fault("single", CorruptCheckpointError, WEIGHTS, f"tensor {QUERY}.*too large")
def a_header_with_sizes_beyond_any_disk(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, shape=[2**62, 2**62, 0])


@fault("single", CorruptCheckpointError, WEIGHTS, f"tensor {QUERY}: shape .* cannot be")
def a_header_with_sizes_of_thousands_of_digits(folder: Path) -> None:
    change_entry(folder / WEIGHTS, QUERY, shape=[10**4000] * 1000)


@fault("single", CorruptCheckpointError, WEIGHTS, f"tensor {QUERY}.*cannot be")
def a_header_whose_offsets_run_backwards(folder: Path) -> None:
    begin, end = read_header(folder / WEIGHTS)[0][QUERY]["data_offsets"]  # type: ignore[misc]
    change_entry(folder / WEIGHTS, QUERY, data_offsets=[end, begin])


@fault("single", CorruptCheckpointError, WEIGHTS, "overlaps the tensor before it")
def a_header_with_overlapping_ranges(folder: Path) -> None:
    begin, end = read_header(folder / WEIGHTS)[0][QUERY]["data_offsets"]  # type: ignore[misc]
    change_entry(folder / WEIGHTS, QUERY, data_offsets=[begin - 64, end - 64])


@fault("single", CorruptCheckpointError, WEIGHTS, "leaves a gap before it")
def a_header_with_a_gap_between_ranges(folder: Path) -> None:
    header, data = read_header(folder / WEIGHTS)
    write_header(folder / WEIGHTS, {name: value for name, value in header.items() if name != QUERY}, data)


@fault("single", CorruptCheckpointError, WEIGHTS, "git lfs pull", "git lfs pull")
def a_git_lfs_pointer_in_place_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@fault("single", CorruptCheckpointError, WEIGHTS, "web page")
def a_web_page_in_place_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


@fault("single", CorruptCheckpointError, WEIGHTS, "a folder")
def a_folder_in_place_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@fault("single", CorruptCheckpointError, WEIGHTS, "pipe")
def a_pipe_in_place_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@fault("single", UnsafeCheckpointError, WEIGHTS, "link to .*dev/zero", "copy the file")
def weights_that_are_a_link_to_a_device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


@fault("single", UnsafeCheckpointError, WEIGHTS, "out of the checkpoint's folder", "copy the file")
def weights_that_are_a_link_out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.with_name(f"{folder.name}-secret"))
    (folder / WEIGHTS).symlink_to(f"../{folder.name}-secret")


@fault("single", CheckpointNotFoundError, WEIGHTS, "link to .*gone.*not there")
def weights_that_are_a_link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("gone")


@fault("single", CheckpointNotFoundError, WEIGHTS, "circle")
def weights_that_are_a_link_to_themselves(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


@fault("single", CheckpointNotFoundError, "config.json", "without weights", "--load-format dummy")
def no_weights_at_all(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@fault("single", WeightMismatchError, WEIGHTS, "shape .* in the checkpoint, .* in the model", "config.json")
def a_tensor_of_another_shape(folder: Path) -> None:
    change_tensors(folder / WEIGHTS, lambda state: state.update({QUERY: torch.ones(32, 64)}))


@fault("single", WeightMismatchError, "config.json", f"1 missing: {NORM}")
def a_tensor_that_is_missing(folder: Path) -> None:
    change_tensors(folder / WEIGHTS, lambda state: state.pop(NORM))


@fault("single", WeightMismatchError, WEIGHTS, "1 unexpected: .*score.weight", "config.json")
def a_tensor_that_no_model_has(folder: Path) -> None:
    change_tensors(folder / WEIGHTS, lambda state: state.update({"score.weight": torch.ones(2, 64)}))


@fault("single", UnsupportedCheckpointError, WEIGHTS, f"{QUERY} is quantized .FP8", "original checkpoint")
def a_tensor_in_fp8(folder: Path) -> None:
    change_tensors(folder / WEIGHTS, lambda state: state.update({QUERY: state[QUERY].to(torch.float8_e4m3fn)}))


@fault("sharded", CorruptCheckpointError, INDEX, "not JSON")
def an_empty_index(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"")


@fault("sharded", CorruptCheckpointError, INDEX, "not an index")
def an_index_without_a_weight_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"metadata": {}}')


@fault("sharded", CorruptCheckpointError, INDEX, "not JSON.*utf-8")
def an_index_that_is_not_utf_8(folder: Path) -> None:
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes().replace(b"model-", b"mod\xe9l-", 1))


@fault("sharded", CorruptCheckpointError, INDEX, "not JSON.*recursion")
def an_index_that_is_nested_without_end(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ' + "[" * 200_000)


@fault("sharded", CorruptCheckpointError, INDEX, "outside the checkpoint's folder", "do not use")
def an_index_that_leads_out_of_the_folder(folder: Path) -> None:
    change_index(folder, QUERY, "../secret.safetensors")


@fault("sharded", CorruptCheckpointError, INDEX, "expected the name of a .safetensors file")
def an_index_that_names_itself(folder: Path) -> None:
    change_index(folder, QUERY, INDEX)


@fault("sharded", CheckpointNotFoundError, INDEX, "link.*circle")
def an_index_that_is_a_link_to_itself(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to(INDEX)


@fault("sharded", CorruptCheckpointError, INDEX, "cannot be the name of a file")
def an_index_with_a_file_name_of_a_thousand_letters(folder: Path) -> None:
    change_index(folder, QUERY, "x" * 1000)


@fault("sharded", CorruptCheckpointError, INDEX, "cannot be the name of a file")
def an_index_with_a_file_name_that_holds_a_zero_byte(folder: Path) -> None:
    change_index(folder, QUERY, "model\0.safetensors")


@fault("sharded", CorruptCheckpointError, INDEX, r"larger than .*")
def an_index_of_a_hundred_gigabytes(folder: Path) -> None:
    with (folder / INDEX).open("r+b") as stream:
        stream.truncate(100 * 10**9)


@fault("sharded", CorruptCheckpointError, INDEX, f"{NORM} .said to be in", "all of them again")
def an_index_that_names_the_wrong_shard(folder: Path) -> None:
    change_index(folder, NORM, shard_of(folder, "model.embed_tokens.weight").name)


@fault("sharded", CheckpointNotFoundError, INDEX, "1 of .* weight files.* are missing: model-00002-of-")
def a_missing_shard(folder: Path) -> None:
    next(folder.glob("model-00002-of-*")).unlink()


@fault("sharded", CheckpointNotFoundError, "model-00001-of-", "shards 2 of")
def a_missing_shard_and_a_missing_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    next(folder.glob("model-00002-of-*")).unlink()


@fault("sharded", CorruptCheckpointError, "model-00003-of-", "and again in", "remove the file")
def a_tensor_in_two_shards(folder: Path) -> None:
    first, last = sorted(folder.glob("model-*.safetensors"))[:3:2]
    (folder / INDEX).unlink()
    last.write_bytes(first.read_bytes())


@fault("sharded", UnsafeCheckpointError, "model-00002-of-", "out of the checkpoint's folder", "copy the file")
def a_shard_that_is_a_link_out_of_the_folder(folder: Path) -> None:
    shard = next(folder.glob("model-00002-of-*"))
    shard.rename(folder.with_name(f"{folder.name}-secret"))
    shard.symlink_to(folder.with_name(f"{folder.name}-secret"))
