"""A model whose weights are all in memory, on a CPU: Headrace against its peers, each at its best, alternately.

    python -m benchmarks.cpu_resident --peers DIR --work DIR                     # Llama-3.2-1B's shape, 512 + 32 tokens
    python -m benchmarks.cpu_resident --peers DIR --work DIR --workload 128/128 --shape opt-1.3b
    python -m benchmarks.cpu_resident --peers DIR --work DIR --workload gsm8k     # eight worked examples before each

Every run is a process of its own. First each system is tried once with every way to hold the model in a precision and
with growing batches; then its best settings, for a single row and for tokens per second, are measured in turn with the
others'. Environments of peers are made in `--peers`, of some GB each; models in `--work`, in each form that is read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.dummy_model import make_model
from benchmarks.machine import provenance
from benchmarks.processes import Figures
from benchmarks.reporting import give, keep, say
from benchmarks.resident_bench import Batches, ResidentBench
from benchmarks.resident_contender import Contender
from benchmarks.resident_result import agreement, ratios, table
from benchmarks.resident_shapes import SHAPES
from benchmarks.resident_systems import PRECISIONS, SYSTEMS, Precision, Variant
from benchmarks.workloads import Workload, random_tokens, worked_examples

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_GSM8K = "gsm8k"
_WITH_SHARED_PREFIXES = ("headrace", "transformers", "vllm")


def main() -> int:
    args = _parser().parse_args()
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-resident-")))
        work.mkdir(parents=True, exist_ok=True)
        peers = args.peers or work / "peers"
        shape = SHAPES[args.shape]
        model = work / args.shape
        model_bytes = make_model(model, shape, "bfloat16")
        bench = ResidentBench(
            model=model.resolve(),
            vocab_size=shape.vocab_size,
            work=work.resolve(),
            peers=peers.resolve(),
            threads=args.threads,
            limit_seconds=args.limit,
        )
        rows = Rows(args.workload, shape.vocab_size, args.data)
        result: Figures = {
            **provenance(),
            "threads": args.threads,
            "shape": {"name": args.shape, **asdict(shape)},
            "model_bytes": model_bytes,
            **rows.figures(),
        }
        contenders = [
            Contender(name, precision, variants, bench, say)
            for precision in args.precisions
            for name in args.systems or (_WITH_SHARED_PREFIXES if args.workload == _GSM8K else SYSTEMS)
            if (variants := _variants(name, precision, args.without))
        ]
        for contender in contenders:
            contender.try_all(rows.for_trial(contender.name, args.batch_sizes))
            keep({**result, **_figures(contenders)}, args.output)
        for repeat in range(args.repeats):
            say(f"run {repeat + 1} of {args.repeats}")
            for contender in contenders:
                contender.measure(rows.at)
                keep({**result, **_figures(contenders)}, args.output)
        result |= _figures(contenders)
    give(result, args.output)
    for line in table(result["systems"]):
        say(line)
    say(json.dumps(result["ratio_to_best_peer"], indent=1))
    return 0


class Rows:
    """What is answered: as many rows as run at a time, of random tokens or of GSM8K.

    Of GSM8K systems with continuous batching answer all questions, those with static batches one batch of them: their
    rate is the same for all, which would take an hour.
    """

    def __init__(self, workload: str, vocab_size: int, data: Path) -> None:
        self._vocab_size = vocab_size
        self._questions: Workload | None = None
        if workload == _GSM8K:
            tokenizer = Tokenizer.from_file(str(data / "tokenizers" / "gpt2" / "tokenizer.json"))
            self._questions = worked_examples(data, lambda text: tokenizer.encode(text).ids)
        else:
            self._prompt_tokens, self._new_tokens = map(int, workload.split("/"))

    def for_trial(self, name: str, batch_sizes: Sequence[int]) -> Batches:
        """Returns what a system's best setting is found with."""
        if self._questions is None:
            return self.at(batch_sizes)
        if SYSTEMS[name].static:
            return self.at([size for size in batch_sizes if size > 1])
        return self.at([len(self._questions.rows)])

    def at(self, batch_sizes: Sequence[int]) -> Batches:
        """Returns the rows of each batch size: the same in every process, and in one process no two alike."""
        if self._questions is not None:
            return {size: Workload(name=_GSM8K, rows=self._questions.rows[:size]) for size in batch_sizes}
        return {
            size: random_tokens(
                self._vocab_size,
                num_rows=size,
                prompt_tokens=self._prompt_tokens,
                new_tokens=self._new_tokens,
                seed=size,
            )
            for size in batch_sizes
        }

    def figures(self) -> Figures:
        if self._questions is None:
            return {"workload": {"prompt_tokens": self._prompt_tokens, "new_tokens": self._new_tokens}}
        lengths = [len(row.prompt_ids) for row in self._questions.rows]
        return {
            "workload": {
                "name": _GSM8K,
                "rows": len(lengths),
                "prompt_tokens": sum(lengths),
                "new_tokens": self._questions.rows[0].num_output_tokens,
            }
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-1b", choices=list(SHAPES))
    parser.add_argument(
        "--workload", default="512/32", type=_workload, help="tokens of prompt / generated, or gsm8k (default: 512/32)"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 16, 32, 64])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="default: all; for gsm8k those that count")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="SYSTEM:VARIANT",
        help="ways to hold the model that are left out, as a run before has shown that they are slower",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_cores(), help="of every system (default: all cores)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which a process is given up")
    parser.add_argument("--peers", type=Path, help="folder for the environments of peers, which stay there")
    parser.add_argument("--work", type=Path, help="folder for the models, which stay there; else a temporary one")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with tasks/gsm8k and tokenizers/gpt2")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    return parser


def _workload(text: str) -> str:
    parts = text.split("/")
    if text != _GSM8K and not (len(parts) == 2 and all(part.isdigit() and int(part) > 1 for part in parts)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected tokens such as 512/32, at least 2 of each, or {_GSM8K}")
    return text


def _variants(name: str, precision: Precision, without: Container[str]) -> list[Variant]:
    return [variant for variant in SYSTEMS[name].variants.get(precision, ()) if f"{name}:{variant.name}" not in without]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _figures(contenders: Sequence[Contender]) -> Figures:
    systems: dict[str, Figures] = {}
    for contender in contenders:
        systems.setdefault(contender.name, {})[contender.precision] = contender.figures()
    return {
        "systems": systems,
        "ratio_to_best_peer": ratios(systems),
        "first_tokens_as_headrace_in_float32": _agreements(contenders),
    }


def _agreements(contenders: Sequence[Contender]) -> Figures:
    tried = {(contender.name, contender.precision): contender.tried for contender in contenders}
    reference = tried.get(("headrace", "full"), {}).get("float32")
    return {f"{name}, {precision}": agreement(found, reference) for (name, precision), found in tried.items()}


if __name__ == "__main__":
    sys.exit(main())
