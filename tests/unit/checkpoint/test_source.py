from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headrace.checkpoint.source import resolve_checkpoint
from headrace.errors import CheckpointNotFoundError, OptionError, UnsupportedCheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys
from headrace.checkpoint.source import resolve_checkpoint
from headrace.errors import HeadraceError
try:
    print(resolve_checkpoint(sys.argv[1]))
except HeadraceError as error:
    print(type(error).__name__ + ": " + str(error))
"""


class FakeHub(ThreadingHTTPServer):
    """As much of the hub's protocol as a download needs; remembers what was asked for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]], sizes: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.repositories, self.sizes = repositories, sizes
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeHubHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            repository, rest = "/".join(parts[:2]), parts[2:]
            if repository == "org/gated":
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if repository not in self.server.repositories:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if rest and rest[1] not in ("main", COMMIT):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self._send(200, json.dumps(self._listing(repository, tree=rest[:1] == ["tree"])).encode())
        organisation, name, _, _, file = path.strip("/").split("/", 4)
        content = self.server.repositories[f"{organisation}/{name}"][file]
        if with_body:
            self.server.downloaded.append(file)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._send(200, content, headers, with_body=with_body)

    def _listing(self, repository: str, *, tree: bool) -> object:
        files = {
            name: self.server.sizes.get(name, len(content))
            for name, content in self.server.repositories[repository].items()
        }
        if tree:
            return [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in files.items()]
        siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
        return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
REPOSITORIES = {
    "org/single": {
        "README.md": b"hello",
        "config.json": b"{}",
        "tokenizer.json": b"[]",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same again",
        "tf_model.h5": b"and again",
        "onnx/model.onnx": b"and again",
    },
    "org/sharded": {
        "config.json": b"{}",
        "model.safetensors.index.json": INDEX.encode(),
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "model-00003-of-00003.safetensors": b"of another time",
    },
    "org/old": {"config.json": b"{}", "pytorch_model.bin": b"weights", "rust_model.ot": b"no"},
    "org/quantized": {"README.md": b"", "tiny-q4.gguf": b"GGUF"},
    "org/huge": {"config.json": b"{}", "model.safetensors": b"not really"},
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub(REPOSITORIES, {})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def resolve(name: str, home: Path, endpoint: str, **environment: str) -> str:
    """Runs resolve_checkpoint in a process of its own, because huggingface_hub reads its settings at import."""
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
        **environment,
    }
    run = subprocess.run([sys.executable, "-c", CODE, name], env=settings, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_local_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "~/gone-for-ever", "a/b/c"])
def test_what_looks_like_a_path_is_never_sought_on_the_hub(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such directory"):
        resolve_checkpoint(name)


def test_a_local_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedCheckpointError, match="GGUF"):
        resolve_checkpoint(str(tmp_path / "a.gguf"))


def test_a_local_directory_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'v1'"):
        resolve_checkpoint(str(tmp_path), revision="v1")


def test_two_revisions_are_one_too_many() -> None:
    with pytest.raises(OptionError, match="'v1' and 'v2'"):
        resolve_checkpoint("org/name@v1", revision="v2")


def test_only_the_files_needed_are_downloaded_and_only_once(hub: FakeHub, tmp_path: Path) -> None:
    path = Path(resolve("org/single", tmp_path, hub.url))
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert sorted(hub.downloaded) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert resolve("org/single@main", tmp_path, hub.url) == str(path)
    assert len(hub.downloaded) == 3


def test_the_shards_that_the_index_names_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    path = Path(resolve(f"org/sharded@{COMMIT}", tmp_path, hub.url))
    assert sorted(file.name for file in path.glob("model-*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_bin_files_are_downloaded_where_there_is_nothing_else(hub: FakeHub, tmp_path: Path) -> None:
    path = Path(resolve("org/old", tmp_path, hub.url))
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_an_earlier_download_serves_when_the_hub_is_out_of_reach(hub: FakeHub, tmp_path: Path) -> None:
    path = resolve("org/single", tmp_path, hub.url)
    assert resolve("org/single", tmp_path, "http://127.0.0.1:9") == path
    assert resolve("org/single", tmp_path, hub.url, HF_HUB_OFFLINE="1") == path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/none", "CheckpointNotFoundError: org/none: neither a local directory nor a model on the hub"),
        ("org/gated", "CheckpointNotFoundError: org/gated: access to this model must be asked for"),
        ("org/single@v9", "CheckpointNotFoundError: org/single: the hub has no revision 'v9'"),
        ("org/quantized", "UnsupportedCheckpointError: org/quantized: the repository has GGUF files (tiny-q4.gguf)"),
        ("what?", "CheckpointNotFoundError: 'what?' is neither a local directory nor a legal name on the hub"),
    ],
)
def test_what_the_hub_refuses_is_said_in_the_users_words(hub: FakeHub, tmp_path: Path, name: str, says: str) -> None:
    assert resolve(name, tmp_path, hub.url).startswith(says)


def test_a_download_larger_than_the_disk_is_not_begun(hub: FakeHub, tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 1 << 60
    answer = resolve("org/huge", tmp_path, hub.url)
    assert answer.startswith("CheckpointError: org/huge: 1048576.0 TiB are to be downloaded")
    assert "HF_HOME" in answer
    assert hub.downloaded == []


def test_offline_without_an_earlier_download_says_so(tmp_path: Path) -> None:
    answer = resolve("org/single", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to download" in answer


def test_a_hub_out_of_reach_is_named_as_the_reason(tmp_path: Path) -> None:
    answer = resolve("org/single", tmp_path, "http://127.0.0.1:9")
    assert answer.startswith("CheckpointNotFoundError: org/single: no such local directory")
    assert "the hub did not answer" in answer
