"""A checkpoint in CTranslate2's form; the type in which it computes is chosen when it is loaded."""

from __future__ import annotations

from pathlib import Path

from ctranslate2.converters import TransformersConverter

from benchmarks.processes import Figures, serve


def make(request: Figures) -> Figures:
    target = Path(request["target"])
    TransformersConverter(request["model"], load_as_float16=False, low_cpu_mem_usage=True).convert(
        str(target), quantization="bfloat16", force=True
    )
    return {"bytes": sum(file.stat().st_size for file in target.iterdir())}


if __name__ == "__main__":
    serve(make)
