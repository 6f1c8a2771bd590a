"""A model larger than its memory: Headrace against the physical limit and against peers, alternately.

    python -m benchmarks.beyond_memory                        # 1.2B under 1.5 GiB
    python -m benchmarks.beyond_memory --case 7b --work DIR   # 13.5 GB under 5.5 GiB; DIR keeps the model

Every run is a process of its own. Just before and after each of Headrace's the machine's rates are measured: the limit
is the slower of reading the bytes that its sweeps had to read, and of computing their matrix products.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.beyond_bench import Bench, Options
from benchmarks.beyond_cases import CASES, Case
from benchmarks.beyond_result import UNCAPPED, Runs, summary
from benchmarks.dummy_model import make_model
from benchmarks.machine import provenance
from benchmarks.memory_cap import MemoryCap, memory_cap
from benchmarks.processes import Figures
from benchmarks.reporting import give, keep, say
from benchmarks.schedule_search import search
from benchmarks.systems.llama_cpp_mmap import missing
from headrace.storage.governor import TOLERANCE
from headrace.units import format_bytes, parse_bytes

COMPRESSED: dict[str, Options] = {
    "headrace int8": {"quantization": "int8", "kv_cache_dtype": "int8"},
    "headrace int4": {"quantization": "int4", "kv_cache_dtype": "int8"},
}
SYSTEMS = ("headrace", UNCAPPED, *COMPRESSED, "accelerate", "llama.cpp")


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    if args.peer_tokens < 2:
        parser.error(
            f"--peer-tokens is {args.peer_tokens}; expected at least 2: the prefill's, and one of a later pass"
        )
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-beyond-")))
        bench, model_bytes = _prepare(CASES[args.case], args, work)
        cap = stack.enter_context(memory_cap(args.cap, int(TOLERANCE * bench.memory_bytes), bench.weight_files))
        result: Figures = {
            **_provenance(),
            "case": args.case,
            "shape": asdict(bench.case.shape),
            "dtype": args.dtype,
            "model_bytes": model_bytes,
            "budget_bytes": bench.memory_bytes,
            "prompt_tokens_per_row": bench.case.prompt_tokens,
            "generated_tokens_per_row": bench.case.new_tokens,
            "rows": bench.rows,
            "rows_at_a_time": bench.default_rows_at_a_time,
        }
        systems = _runners(bench, cap, args)
        result |= _measure(systems, args.repeats, lambda figures: keep(result | figures, args.output))
        if "llama.cpp" in args.systems and (why := missing(args.gguf)):
            result["systems"]["llama.cpp"] = why
        result["cap"] = cap.figures()
        if args.search:
            result["search"] = search(bench, cap, tell=say)
        give(result, args.output)
    return 0


def _measure(systems: Mapping[str, Callable[[], Figures]], repeats: int, use: Callable[[Figures], None]) -> Figures:
    """Runs all systems in turn, `repeats` times, and gives `use` what is known after each run.

    One that failed is not tried again.
    """
    measured: dict[str, Runs] = {name: [] for name in systems}
    for repeat in range(repeats):
        for name, run in systems.items():
            if any("failed" in figures for figures in measured[name]):
                continue
            figures = run()
            measured[name].append(figures)
            said = figures.get("failed") or f"{figures['generated_tokens_per_second']:.3f} tokens/s"
            say(f"run {repeat + 1} of {repeats}: {name}: {said}")
            use(summary(measured))
    return summary(measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="1b", choices=list(CASES))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the model's files too")
    parser.add_argument("--memory", help="another budget than the case's, as headrace takes it")
    parser.add_argument("--rows", type=int, help="rows that Headrace answers; by default twice what it runs at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of accelerate")
    parser.add_argument("--peer-tokens", type=int, default=4, help="tokens per row that peers generate (at least 2)")
    parser.add_argument(
        "--cap",
        default="cgroup",
        choices=("cgroup", "evict", "none"),
        help="what bounds memory and file cache together: a cgroup where permitted, else nothing; or a thread that "
        "empties the file cache",
    )
    parser.add_argument("--search", action="store_true", help="try other schedules under the same budget")
    parser.add_argument("--gguf", help="the model for llama.cpp, where it is installed")
    parser.add_argument("--work", type=Path, help="folder for the model, which stays there; else a temporary one")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    return parser


def _prepare(case: Case, args: argparse.Namespace, work: Path) -> tuple[Bench, int]:
    """Makes the model and finds out how many rows Headrace runs at a time."""
    model = work / f"{args.case}-{args.dtype}"
    say(f"making the model in {model}")
    model_bytes = make_model(model, case.shape, args.dtype)
    memory = args.memory or case.memory
    bench = Bench(
        case=case,
        model=model,
        dtype=args.dtype,
        memory_bytes=None if memory is None else parse_bytes(memory),
        rows=args.rows,
        work=work,
    )
    say(f"{format_bytes(model_bytes)} of weights under {format_bytes(bench.memory_bytes)}; {bench.rows} rows")
    return bench, model_bytes


def _runners(bench: Bench, cap: MemoryCap, args: argparse.Namespace) -> dict[str, Callable[[], Figures]]:
    runs: dict[str, Callable[[], Figures]] = {"headrace": lambda: bench.headrace_and_limit({}, cap)}
    if cap.kind != "none" and UNCAPPED in args.systems:
        runs[UNCAPPED] = lambda: bench.headrace_and_limit({}, None)
    for name, options in COMPRESSED.items():
        if name in args.systems:
            runs[name] = lambda options=options: bench.headrace_and_limit(options, cap)
    if "accelerate" in args.systems:
        for size in args.batch_sizes or bench.case.batch_sizes:
            runs[f"accelerate, batch {size}"] = lambda size=size: bench.accelerate(size, args.peer_tokens, cap)
    if "llama.cpp" in args.systems and missing(args.gguf) is None:
        runs["llama.cpp, batch 1"] = lambda: bench.llama_cpp(args.gguf, args.peer_tokens, cap)
    return runs


def _provenance() -> Figures:
    said = provenance()
    versions = {name: version(name) for name in ("accelerate", "safetensors")}
    return {**said, "versions": {**said["versions"], **versions}}  # type: ignore[dict-item]


if __name__ == "__main__":
    sys.exit(main())
