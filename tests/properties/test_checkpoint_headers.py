"""Headers and indices of any content: a typed error that names the file, or what the reference implementation reads."""

from __future__ import annotations

import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save

from headrace.checkpoint.safetensors_reader import read_header, read_index
from headrace.checkpoint.torch_bin_reader import read_torch_bin
from headrace.errors import CheckpointError

T = TypeVar("T")

MAX_BYTES = 4 * 1024**2
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}

# What JSON can hold and more, as text, so that no library has a say in what may be written.
ODD_JSON = st.one_of(
    st.sampled_from(
        ["-0", "-1", "1e999", "1.0", "NaN", "Infinity", "9" * 20, "1" * 5000, "[" * 3000, '"\\ud800"', "", "{", "nul"]
    ),
    st.integers(0, 2**70).map(str),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ).map(json.dumps),
)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_or_refuse(read: Callable[[Path], T], file: Path, content: bytes) -> T | None:
    """Returns what is read from a file of `content`; None where that is refused as it should be."""
    file.write_bytes(content)
    tracemalloc.start()
    try:
        return read(file)
    except CheckpointError as error:
        message = str(error)
        assert str(file) in message and "\n" not in message and len(message) < 2500
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MAX_BYTES + 40 * len(content)


def check_header(folder: Path, content: bytes) -> bool:
    """Reads `content` as both do; returns whether it was accepted."""
    entries = read_or_refuse(read_header, folder / "model.safetensors", content)
    if entries is None:
        return False
    theirs = dict(deserialize(content))
    assert [entry.name for entry in entries] == list(dict.fromkeys(entry.name for entry in entries))
    assert {entry.name for entry in entries} == theirs.keys()
    for entry in entries:
        described = theirs[entry.name]
        assert entry.dtype == DTYPES[described["dtype"]]
        assert list(entry.shape) == list(described["shape"])
        assert content[entry.offset : entry.offset + entry.num_bytes] == bytes(described["data"])
    return True


def with_header(text: str | bytes, data: bytes = b"") -> bytes:
    header = text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")
    return len(header).to_bytes(8, "little") + header + data


@st.composite
def good_files(draw: st.DrawFn) -> bytes:
    arrays = draw(
        st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8),
            st.tuples(SHAPES, st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])),
            max_size=4,
        )
    )
    # Of empty metadata the reference writes what is no JSON.
    metadata = draw(st.none() | st.dictionaries(st.sampled_from("abc"), st.text("xyz", max_size=4), min_size=1))
    tensors = {name: np.ones(shape, dtype) for name, (shape, dtype) in arrays.items() if name != "__metadata__"}
    return save(tensors, metadata=metadata)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A good file with bits flipped, bytes put in or taken away, or its end cut off."""
    content = bytearray(draw(good_files()))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(content)))
        end = draw(st.integers(position, min(len(content), position + 4)))
        content[position:end] = draw(st.binary(max_size=4))
    if content and draw(st.booleans()):
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


@st.composite
def odd_headers(draw: st.DrawFn) -> bytes:
    """Entries that fit their data, of which some hold other values, other keys, or come twice."""
    parts, end = [], 0
    for index in range(draw(st.integers(0, 4))):
        dtype, itemsize = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("C64", 8), ("F8_E4M3", 1)]))
        shape = draw(SHAPES)
        begin, end = end, end + itemsize * int(np.prod(shape, dtype=np.int64))
        values = {"dtype": f'"{dtype}"', "shape": json.dumps(shape), "data_offsets": f"[{begin},{end}]"}
        for key in draw(st.lists(st.sampled_from([*values, "more"]), max_size=1)):
            values[key] = draw(ODD_JSON | st.lists(ODD_JSON, max_size=3).map(lambda items: f"[{','.join(items)}]"))
        entry = "{" + ",".join(f'"{key}":{value}' for key, value in values.items()) + "}"
        name = draw(
            st.sampled_from([f'"t{index}"', f'"t{index}"', '"t0"', '"\\n"', '"\\udc00"', '"__metadata__"', '""'])
        )
        parts.append(f"{name}:{draw(st.sampled_from([entry, entry, entry, '{}'])) if index else entry}")
    if draw(st.booleans()):
        parts.append(f'"__metadata__":{draw(ODD_JSON)}')
    data = bytes(max(0, end + draw(st.sampled_from([0, 0, 0, 1, -1]))))
    return with_header("{" + ",".join(parts) + "}" + draw(st.sampled_from(["", "", " ", "\n", "x", "\0"])), data)


@given(good_files())
def test_what_the_reference_writes_is_read_as_it_reads_it(folder: Path, content: bytes) -> None:
    assert check_header(folder, content)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(with_header) | ODD_JSON.map(with_header))
@example((1 << 63).to_bytes(8, "little") + b"{")
@example((99_999_999).to_bytes(8, "little") + b"{}")
def test_any_bytes_are_refused_or_read_alike(folder: Path, content: bytes) -> None:
    check_header(folder, content)


@given(damaged_files())
def test_a_damaged_file_is_refused_or_read_alike(folder: Path, content: bytes) -> None:
    check_header(folder, content)


@given(odd_headers())
@example(with_header('{"t":{"dtype":"U8","shape":[0,-0],"data_offsets":[0,0]}}'))
@example(with_header('{"t":{"dtype":"U8","shape":[4611686018427387904,4,0],"data_offsets":[0,0]}}'))
def test_an_odd_header_is_refused_or_read_alike(folder: Path, content: bytes) -> None:
    check_header(folder, content)


def check_index(folder: Path, content: bytes) -> None:
    index = read_or_refuse(read_index, folder / "model.safetensors.index.json", content)
    if index is None:
        return
    assert index == json.loads(content)["weight_map"]
    for name in index.values():
        path = PurePosixPath(name)
        assert path.suffix == ".safetensors" and not path.is_absolute() and ".." not in path.parts
        assert not (folder / name).exists()  # which asks the system, whom no name may startle


FILE_NAMES = st.one_of(
    st.text(max_size=6).map(lambda text: text + ".safetensors"),
    st.sampled_from(["../a.safetensors", "/a.safetensors", ".", "\\..\\a.safetensors", "x" * 300, "a\0.safetensors"]),
)


@given(
    st.binary(max_size=100) | ODD_JSON.map(str.encode) | ODD_JSON.map(lambda text: f'{{"weight_map":{text}}}'.encode())
)
@example(b'{"weight_map": ' + b"[" * 100_000)
def test_any_index_is_refused_or_leads_to_files_of_its_folder(folder: Path, content: bytes) -> None:
    check_index(folder, content)


@given(st.dictionaries(st.text(max_size=4), FILE_NAMES, max_size=3))
@example({"\n": ".safetensors"})
def test_an_index_of_any_file_names_is_refused_or_leads_to_files_of_its_folder(
    folder: Path, weight_map: dict[str, str]
) -> None:
    check_index(folder, json.dumps({"weight_map": weight_map}).encode())


def torch_file(zipped: bool) -> bytes:
    """A small file in either layout."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4)}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


# Of a flipped bit in the text of an old pickle, Python's decoder of escapes warns.
@pytest.mark.filterwarnings("ignore:.*invalid.*escape sequence:DeprecationWarning")
@example(content=torch_file(True), flips=[(0.784, 65)], keep=1.0)  # a record that is said to take four megabytes
@given(
    content=st.sampled_from([torch_file(True), torch_file(False)]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    keep=st.just(1.0) | st.floats(0, 1),
)
def test_a_damaged_torch_file_is_refused_or_read_within_its_bounds(
    folder: Path, content: bytes, flips: list[tuple[float, int]], keep: float
) -> None:
    damaged = bytearray(content)
    for place, bits in flips:
        damaged[int(place * len(damaged))] ^= bits
    del damaged[int(keep * len(damaged)) :]
    for entry in read_or_refuse(read_torch_bin, folder / "pytorch_model.bin", bytes(damaged)) or ():
        assert 0 <= entry.offset <= entry.offset + entry.num_bytes <= len(damaged)
