"""A checkpoint in OpenVINO's form, with weights in 16, 8 or 4 bits; by optimum-intel."""

from __future__ import annotations

from pathlib import Path

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino.__main__ import main_export
from optimum.intel.openvino import OVConfig, OVWeightQuantizationConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
    for name, model in zip(("tokenizer", "detokenizer"), _any_tokenizer(), strict=True):
        openvino.save_model(model, target / f"openvino_{name}.xml")
    return {"bytes": sum(file.stat().st_size for file in target.iterdir())}


def _any_tokenizer() -> tuple[openvino.Model, openvino.Model]:
    """Returns one of two words: openvino-genai asks for some, and does not need it where prompts are token ids."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    first, second = convert_tokenizer(wrapped, with_detokenizer=True)
    return first, second


if __name__ == "__main__":
    serve(make)
