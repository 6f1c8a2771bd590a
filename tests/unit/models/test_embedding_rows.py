"""An embedding whose rows are read when they are needed gives what the model's own gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.reader import RangeReader
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.models.embedding_rows import DiskEmbedding, keep_embedding_on_disk
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_weight_map
from tests.tiny_configs import TINY_CONFIGS, VOCAB_SIZE
from tests.tiny_models import save_tiny

TOKENS = [
    torch.tensor([[5]]),
    torch.tensor([[3, 4, 5, 3, 90, 0, VOCAB_SIZE - 1]]),
    torch.arange(VOCAB_SIZE).flip(0)[None],
    torch.tensor([[7, 7], [7, 7]]),
]


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return save_tiny(name, folder, dtype=dtype, max_shard_size="20KB")


def embedding_of(folder: Path, reader: RangeReader, dtype: torch.dtype = torch.float32) -> DiskEmbedding:
    model = build_skeleton(folder, dtype)
    (source,) = build_weight_map(model, Checkpoint.open(folder)).in_group("embedding")
    keep_embedding_on_disk(model, source, reader)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, DiskEmbedding)
    return embedding


@pytest.mark.parametrize("token_ids", TOKENS, ids=lambda ids: f"{ids.numel()} tokens")
@pytest.mark.parametrize("name", [name for name in TINY_CONFIGS if name != "bloom"])
def test_rows_from_the_disk_are_those_of_the_models_own_embedding(
    name: str, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    expected = save(name, tmp_path).get_input_embeddings()(token_ids)
    with RangeReader() as reader:
        found = embedding_of(tmp_path, reader)(token_ids)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, expected)


def test_rows_of_a_narrow_dtype_are_read_as_they_are(tmp_path: Path) -> None:
    expected = save("llama", tmp_path, torch.bfloat16).get_input_embeddings()(TOKENS[1])
    with RangeReader() as reader:
        found = embedding_of(tmp_path, reader, torch.bfloat16)(TOKENS[1])
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, expected)


def test_the_table_is_in_memory_only_while_the_embedding_runs(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with RangeReader() as reader:
        embedding = embedding_of(tmp_path, reader)
        embedding(TOKENS[2])
        assert embedding.weight.is_meta


def test_an_attribute_of_the_models_own_embedding_is_found(tmp_path: Path) -> None:
    save("gemma2", tmp_path)
    with RangeReader() as reader:
        assert embedding_of(tmp_path, reader).embedding_dim == 64  # type: ignore[comparison-overlap]


def test_a_file_that_changes_between_two_sweeps_is_noticed(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with RangeReader() as reader:
        embedding = embedding_of(tmp_path, reader)
        embedding(TOKENS[0])
        os.utime(embedding.file, ns=(1, 1))
        with pytest.raises(CorruptCheckpointError, match=f"{embedding.file.name}: changed while it was in use"):
            embedding(TOKENS[0])


def test_a_file_that_was_truncated_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with RangeReader() as reader:
        embedding = embedding_of(tmp_path, reader)
        os.truncate(embedding.file, embedding.first_byte + 10)
        with pytest.raises(CorruptCheckpointError, match="truncated while in use"):
            embedding(TOKENS[2])
        assert embedding.weight.is_meta


def test_a_file_that_is_gone_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with RangeReader() as reader:
        embedding = embedding_of(tmp_path, reader)
        embedding.file.unlink()
        with pytest.raises(CheckpointNotFoundError, match="No such file or directory; download or copy"):
            embedding(TOKENS[0])
