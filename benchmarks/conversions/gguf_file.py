"""A Llama of `dummy_model` as a GGUF file without vocabulary, quantized by llama.cpp itself."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from benchmarks.processes import Figures, serve

_PLAIN = {
    "BF16": gguf.GGMLQuantizationType.BF16,
    "F16": gguf.GGMLQuantizationType.F16,
    "F32": gguf.GGMLQuantizationType.F32,
}
_QUANTIZED = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
"""Of tensors: transformers' names, and llama.cpp's."""


def make(request: Figures) -> Figures:
    model, target, kind = Path(request["model"]), Path(request["target"]), request["type"]
    config = json.loads((model / "config.json").read_text())
    if config["model_type"] != "llama":
        raise SystemExit(f"llama.cpp does not run models of the type {config['model_type']}")
    if kind in _PLAIN:
        _write(model, config, target, _PLAIN[kind])
    else:
        plain = target.with_suffix(".plain")
        _write(model, config, plain, gguf.GGMLQuantizationType.BF16)
        _quantize(plain, target, _QUANTIZED[kind])
        plain.unlink()
    return {"bytes": target.stat().st_size}


def _write(model: Path, config: Figures, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(target, "llama")
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, weight in _weights(model):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _interleaved(weight, heads if "q_proj" in name else key_heads)
        own = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
        if own is gguf.GGMLQuantizationType.BF16:
            writer.add_tensor(_renamed(name), np.ascontiguousarray(weight).view(np.uint8), raw_dtype=own)
        else:
            wide = (weight.astype(np.uint32) << 16).view(np.float32)
            half = own is gguf.GGMLQuantizationType.F16
            writer.add_tensor(_renamed(name), wide.astype(np.float16) if half else wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of bfloat16 files, as the 16 bits that they are: numpy has no such numbers."""
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
            begin, _ = entry["data_offsets"]
            yield name, np.memmap(file, np.uint16, "r", 8 + header_bytes + begin, tuple(entry["shape"]))


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows in the order of llama.cpp's rotary embedding: pairs side by side, not in two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _renamed(name: str) -> str:
    parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{_NAMES[parts[2]]}.weight"
    return f"{_NAMES['.'.join(parts)]}.weight"


def _quantize(source: Path, target: Path, kind: int) -> None:
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = kind
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status:
        raise SystemExit(f"llama.cpp's quantization ended with status {status}")


if __name__ == "__main__":
    serve(make)
