"""Jobs in processes of their own, whose memory is watched from outside.

Importing torch and transformers takes seconds, so that one process does it once and forks for every job. A forked
process counts the shared memory as its own, like one that imported them itself; only pages of code come back one by
one, as they are used, so that every process runs a tiny model before its job.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.002
_TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True, kw_only=True)
class MeasuredJob:
    """Rows of random tokens through an `LLM`.

    Attributes:
        options: of `LLM`, `memory` in bytes among them.
        prompt_tokens, max_tokens: the range from which each row's numbers are drawn.
        num_threads: of torch.
    """

    model: str
    options: dict[str, Any]
    num_rows: int = 64
    prompt_tokens: tuple[int, int] = (1, 200)
    max_tokens: tuple[int, int] = (1, 40)
    logprobs: int | None = None
    seed: int = 0
    num_threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a job.

    Attributes:
        error: type and message of what `LLM` raised.
        peak_bytes: highest resident memory of the process, as the kernel or many looks from outside saw it.
        budget_bytes: what `memory` said.
        reported_bytes: what the process itself says about that.
        num_generated: tokens over all rows. errors: codes of the rows that failed.
    """

    peak_bytes: int
    budget_bytes: int = 0
    reported_bytes: int = 0
    error: tuple[str, str] | None = None
    description: str = ""
    ledger: str = ""
    limits: tuple[int, int, int] = (0, 0, 0)
    weights_were_loaded: bool = False
    num_generated: int = 0
    errors: list[str] = field(default_factory=list)


def with_memory(job: MeasuredJob, num_bytes: int) -> MeasuredJob:
    """The same job with another budget."""
    return replace(job, options={**job.options, "memory": num_bytes})


class JobRunner:
    """Hands jobs to the process that forks for them."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin, self._stdout = stdin, stdout

    def run(self, job: MeasuredJob) -> Measured:
        """Runs one job to its end."""
        self._stdin.write(json.dumps(asdict(job)) + "\n")
        self._stdin.flush()
        return Measured(**json.loads(self._stdout.readline()))


@contextmanager
def job_runner() -> Iterator[JobRunner]:
    """Starts the process that forks; it ends with the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.measured_jobs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield JobRunner(process.stdin, process.stdout)
        process.stdin.close()


def _serve() -> None:
    import headrace.engine.llm  # noqa: F401  the one import for all jobs

    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            result = _run(MeasuredJob(**json.loads(line)))
            os.write(writer, json.dumps(result).encode())
            os._exit(0)
        os.close(writer)
        seen = watch(child)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        result = json.loads(text) if text else {"error": ("Died", "the process ended without a word")}
        result["peak_bytes"] = max(seen, result.get("reported_bytes", 0))
        print(json.dumps(result), flush=True)


def watch(child: int) -> int:
    """Returns the highest resident memory of `child` until its end; whoever started it collects its status."""
    highest = 0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            status = Path(f"/proc/{child}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith(("VmHWM:", "VmRSS:")):
                highest = max(highest, int(line.split()[1]) * 1024)
        time.sleep(_POLL_SECONDS)
    return highest


def _run(job: MeasuredJob) -> dict[str, Any]:
    import torch

    from headrace.engine import launch
    from headrace.engine.llm import LLM
    from headrace.errors import HeadraceError
    from headrace.models.weights import WeightLoader
    from headrace.storage.process_memory import peak_resident_bytes

    torch.set_num_threads(job.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_TINY))
        with LLM(folder, load_format="dummy", dtype=job.options.get("dtype", "float32")) as llm:
            list(llm.run(_requests(replace(job, num_rows=8), llm.max_model_len, 32)))
    result: dict[str, Any] = {"budget_bytes": job.options["memory"]}
    kept: list[launch.Launched] = []
    real_launch, real_load = launch.launch, WeightLoader.load

    def launching(options: launch.EngineOptions) -> launch.Launched:
        kept.append(real_launch(options))
        return kept[0]

    def loading(self: WeightLoader, group: Any) -> int:
        result["weights_were_loaded"] = True
        return real_load(self, group)

    import headrace.engine.llm as llm_module

    llm_module.launch = launching  # type: ignore[attr-defined]
    WeightLoader.load = loading  # type: ignore[method-assign]
    try:
        with LLM(job.model, **job.options) as llm:
            result["description"] = llm.description
            engine = kept[0].engine
            outputs = list(llm.run(_requests(job, llm.max_model_len, engine.vocab_size)))
            result["errors"] = [output.error.code for output in outputs if output.error is not None]
            result["num_generated"] = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
            result["ledger"] = kept[0].host.ledger()
            limits = engine.scheduler.limits
            result["limits"] = (llm.max_model_len, limits.max_num_seqs, limits.max_num_batched_tokens)
    except HeadraceError as error:
        result["error"] = (type(error).__name__, str(error))
    result["reported_bytes"] = peak_resident_bytes()
    return result


def _requests(job: MeasuredJob, max_model_len: int, vocab_size: int) -> Iterator[Any]:
    from headrace.engine.requests import GenerationRequest
    from headrace.sampling.parameters import SamplingParams

    draw = random.Random(job.seed)
    for number in range(job.num_rows):
        length = max(1, min(draw.randint(*job.prompt_tokens), max_model_len - 1))
        method = draw.choice(
            [{"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 1.0, "top_p": 0.9}, {"top_k": 40}]
        )
        params = SamplingParams(
            max_tokens=draw.randint(*job.max_tokens), ignore_eos=True, logprobs=job.logprobs, **method
        )
        tokens = tuple(draw.randrange(vocab_size) for _ in range(length))
        yield GenerationRequest(request_id=number, prompt_token_ids=tokens, params=params)


if __name__ == "__main__":
    _serve()
