"""Where a checkpoint is: a local directory, or a repository of the hub, of which only what is needed is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.checkpoint.files import TOKENIZER_FILES
from headrace.checkpoint.formats import check_is_directory
from headrace.checkpoint.safetensors_reader import read_index
from headrace.errors import CheckpointError, CheckpointNotFoundError, OptionError, UnsupportedCheckpointError
from headrace.units import format_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_SETTINGS = frozenset({"config.json", "generation_config.json", *TOKENIZER_FILES})
_TEMPLATES = "additional_chat_templates/"


def resolve_checkpoint(name: str, revision: str | None = None) -> Path:
    """Returns the local directory of a checkpoint, after downloading it from the hub where `name` is not a directory.

    `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub, which also draws
    the progress bars on stderr. What is in its cache already is not downloaded again.

    Args:
        name: a directory, or `organisation/name` of the hub, also as `organisation/name@revision`.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointNotFoundError: neither a directory nor a repository that can be reached with the rights at hand.
        UnsupportedCheckpointError: the repository has no weights in a format that this version reads.
        CheckpointError: the disk has no room for the files.
        OptionError: a revision of a local directory, or two revisions.
    """
    path = Path(name).expanduser()
    if path.exists() or _looks_like_path(name):
        check_is_directory(path)
        if revision is not None:
            raise OptionError(
                f"{path} is a local directory, which has no revision {revision!r}; leave the revision out"
            )
        return path
    repository, at, inline = name.partition("@")
    if at and revision not in (None, inline):
        raise OptionError(f"two revisions for {repository}: {inline!r} and {revision!r}; give one")
    return _download(repository, inline if at else revision)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or name.endswith((".gguf", "/"))


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    where = repository if revision is None else f"{repository}@{revision}"
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    # Beside its own errors the hub library raises those of its HTTP library, which has changed twice.
    except Exception as error:
        return _cached(repository, revision, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    try:
        chosen = sorted(name for name in sizes if name in _SETTINGS or name.startswith(_TEMPLATES))
        weights = _choose_weights(where, sizes)
        if weights.endswith(".index.json"):
            index_file = Path(hf_hub_download(repository, weights, revision=revision))
            chosen += [weights, *sorted(set(read_index(index_file).values()))]
        else:
            chosen.append(weights)
        _check_disk(where, _not_cached(info, repository, chosen, sizes), Path(HF_HUB_CACHE))
        # By branch and not by commit, so that the cache remembers the branch for a time without network.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=chosen))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointNotFoundError(
            f"{where}: the download from the hub failed: {_first_line(error)}; "
            "run the same command again: it goes on where it stopped"
        ) from error


def _choose_weights(where: str, names: Iterable[str]) -> str:
    """The weights file, or the index of its shards: safetensors before `.bin`, never both."""
    present = set(names)
    for name in (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ):
        if name in present:
            return name
    gguf = sorted(name for name in present if name.endswith(".gguf"))
    found = f"GGUF files ({gguf[0]})" if gguf else "neither safetensors nor .bin weights"
    raise UnsupportedCheckpointError(
        f"{where}: the repository has {found}; this version reads safetensors and .bin; "
        "use the original repository of the model"
    )


def _not_cached(info: ModelInfo, repository: str, chosen: Iterable[str], sizes: Mapping[str, int]) -> int:
    """The bytes that are still to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    return sum(
        sizes.get(name, 0)
        for name in chosen
        if not isinstance(try_to_load_from_cache(repository, name, revision=info.sha), str)
    )


def _check_disk(where: str, num_bytes: int, cache: Path) -> None:
    folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise CheckpointError(
            f"{where}: {format_bytes(num_bytes)} are to be downloaded to {cache}, where {format_bytes(free_bytes)} are "
            "free; free some space, or set HF_HOME to a folder on a larger disk"
        )


def _cached(repository: str, revision: str | None, error: Exception) -> Path:
    """What an earlier download left, when the hub cannot be asked; else the reason, in the user's words."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=["config.json"], local_files_only=True)
        )
    # Not there, not complete, or not a legal name: in every case the first error is the one to tell.
    except Exception:
        raise CheckpointNotFoundError(_explain(repository, revision, error)) from error


def _explain(repository: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"{repository}: access to this model must be asked for; accept its conditions on the hub's page of the "
            "model and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repository}: neither a local directory nor a model on the hub; check the name; "
            "for a private model set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository}: the hub has no revision {revision!r} of it; check the branch, tag or commit"
    if isinstance(error, HFValidationError):
        return f"{repository!r} is neither a local directory nor a legal name on the hub; expected organisation/name"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{repository}: not in the cache, and HF_HUB_OFFLINE forbids to download it; unset it, or give a directory"
        )
    return (
        f"{repository}: no such local directory, not in the cache, and the hub did not answer ({_first_line(error)}); "
        "check the connection, or give a directory"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
