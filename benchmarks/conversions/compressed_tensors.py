"""A checkpoint with packed linear layers in the compressed-tensors format, which vLLM reads; by Headrace itself."""

from __future__ import annotations

from pathlib import Path

from benchmarks.processes import Figures, serve
from headrace.compression.weight_codecs import Int4Codec, Int8Codec
from headrace.models.locate import locate_model
from headrace.models.quantized_checkpoint import write_quantized


def make(request: Figures) -> Figures:
    codec = {"int8": Int8Codec, "int4": Int4Codec}[request["quantization"]]()
    written = write_quantized(locate_model(request["model"], None), Path(request["target"]), codec, note=lambda _: None)
    return {"bytes": written.written_bytes}


if __name__ == "__main__":
    serve(make)
