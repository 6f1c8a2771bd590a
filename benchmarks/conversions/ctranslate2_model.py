"""A checkpoint in CTranslate2's form; the type in which it computes is chosen when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from ctranslate2.converters import TransformersConverter

from benchmarks.processes import Figures, serve


def make(request: Figures) -> Figures:
    target = Path(request["target"])
    TransformersConverter(request["model"], low_cpu_mem_usage=True).convert(str(target), quantization="bfloat16")
    file = target / "config.json"
    config = json.loads(file.read_text())
    for name in ("bos_token", "eos_token", "unk_token"):  # it does not load a model without them
        config[name] = config.get(name) or "w0"
    file.write_text(json.dumps(config))
    return {"bytes": sum(file.stat().st_size for file in target.iterdir())}


if __name__ == "__main__":
    serve(make)
