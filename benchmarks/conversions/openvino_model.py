"""A checkpoint in OpenVINO's form, with weights in 16, 8 or 4 bits; by optimum-intel."""

from __future__ import annotations

from pathlib import Path

from optimum.exporters.openvino.__main__ import main_export
from optimum.intel.openvino import OVConfig, OVWeightQuantizationConfig

from benchmarks.processes import Figures, serve


def make(request: Figures) -> Figures:
    target, weights = Path(request["target"]), request["weight_format"]
    bits = {"int8": 8, "int4": 4}.get(weights)
    if bits is None:
        config = OVConfig(dtype=weights)
    else:
        config = OVConfig(quantization_config=OVWeightQuantizationConfig(bits=bits, sym=bits == 8))
    main_export(
        request["model"],
        target,
        task="text-generation-with-past",
        ov_config=config,
        convert_tokenizer=False,
        library_name="transformers",
    )
    return {"bytes": sum(file.stat().st_size for file in target.iterdir())}


if __name__ == "__main__":
    serve(make)
