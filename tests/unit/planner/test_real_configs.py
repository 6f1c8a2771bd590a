"""Configurations of well-known models: size and KV as published or counted by hand, and dummies of their layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headrace import LLM, SamplingParams
from headrace.errors import UnsupportedModelError
from headrace.models.architectures import EXACT
from headrace.models.observation import layer_table
from headrace.models.skeleton import build_outline, read_model_config
from headrace.planner import inspection
from headrace.planner.hardware import Hardware
from headrace.planner.inspection import ModelReport, inspect_model

CPU = torch.device("cpu")
RATES = Hardware(device="cpu", matrix_rate=1e12, memory_rate=1e10, memory_bytes=8 << 30)

PUBLISHED = {
    "constructed/bloom-560m.json": (0.5592, 0.5592),
    "constructed/bloom-7b1.json": (7.0690, 7.0690),
    "constructed/bloom-176b.json": (176.247, 176.247),
    "constructed/llama-2-7b.json": (6.7384, 6.7384),
    "constructed/llama-2-13b.json": (13.016, 13.016),
    "constructed/llama-2-70b.json": (68.977, 68.977),
    "constructed/opt-125m.json": (0.1252, 0.1252),
    "constructed/opt-1.3b.json": (1.3158, 1.3158),
    "constructed/opt-2.7b.json": (2.6516, 2.6516),
    "constructed/opt-6.7b.json": (6.6585, 6.6585),
    "constructed/opt-13b.json": (12.853, 12.853),
    "constructed/opt-30b.json": (29.975, 29.975),
    "constructed/opt-66b.json": (65.720, 65.720),
    "constructed/opt-175b.json": (174.6, 174.6),
    "upstream/Qwen--Qwen3-0.6B_config.json": (0.596, 0.596),
    "upstream/Qwen--Qwen3-8B_config.json": (8.19, 8.19),
    "upstream/Qwen--Qwen3-32B_config.json": (32.76, 32.76),
    "upstream/Qwen--Qwen3-30B-A3B_config.json": (30.53, 3.35),
    "upstream/Qwen--Qwen3-235B-A22B_config.json": (235.09, 22.19),
    "upstream/deepseek-ai--DeepSeek-V3_config.json": (671.03, 37.55),
    "upstream/google--gemma-4-26B-A4B_config.json": (25.81, 4.40),
    "upstream/meta-llama--Llama-4-Scout-17B-16E-Instruct_config.json": (107.77, 17.17),
    "upstream/meta-llama--Meta-Llama-3.1-8B_config.json": (8.03, 8.03),
    "upstream/meta-llama--Meta-Llama-3.1-70B_config.json": (70.55, 70.55),
    "upstream/meta-llama--Meta-Llama-3.1-405B_config.json": (405.85, 405.85),
    "upstream/mistralai--Mixtral-8x7B-v0.1_config.json": (46.70, 12.88),
    "upstream/mistralai--Mixtral-8x22B-v0.1_config.json": (140.63, 39.15),
    "upstream/openai--gpt-oss-20b_config.json": (20.91, 4.19),
}
"""Billions of parameters, and of those that a token uses, its embedding included, from papers and model cards.

Of Gemma 4 the tower for images is in both, and of Llama 4 in neither. gpt-oss's card counts 3.61 active without the
embedding (0.58).
"""

FAST = {
    "constructed/bloom-560m.json",
    "constructed/llama-2-7b.json",
    "constructed/opt-125m.json",
    "upstream/Qwen--Qwen3-30B-A3B_config.json",
    "upstream/deepseek-ai--DeepSeek-V3_config.json",
    "upstream/google--gemma-4-26B-A4B_config.json",
    "upstream/meta-llama--Llama-4-Scout-17B-16E-Instruct_config.json",
    "upstream/openai--gpt-oss-20b_config.json",
}
"""One or two of each architecture; the others are of the same layers, and slow."""

every_file = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "calibrate", lambda *_: RATES)


def written(values: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def read(shared_data: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((shared_data / "configs" / name).read_text())
    return values


def report_of(values: dict[str, Any], folder: Path) -> ModelReport:
    return inspect_model("m", written(values, folder), dtype=None, device=CPU)


def text_part(values: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = values.get("text_config", values)
    return part


def numbers_by_layer(values: dict[str, Any]) -> list[tuple[int, int | None]]:
    """The numbers that a token leaves in each layer and the layer's window, from the fields of `values` alone."""
    text = text_part(values)
    num_layers = text.get("num_hidden_layers", text.get("n_layer"))
    num_heads = text.get("num_attention_heads", text.get("n_head"))
    head_dim = text.get("head_dim", text["hidden_size"] // num_heads)
    usual = 2 * text.get("num_key_value_heads", num_heads) * head_dim
    match text["model_type"]:
        case "deepseek_v3":
            return [(text["kv_lora_rank"] + text["qk_rope_head_dim"], None)] * num_layers
        case "gpt_oss":
            return [(usual, 128 if kind == "sliding_attention" else None) for kind in text["layer_types"]]
        case "llama4_text":  # three of four layers look at their own chunk of the text
            chunk = text["attention_chunk_size"]
            return [(usual, None if layer % 4 == 3 else chunk) for layer in range(num_layers)]
        case "gemma4_text":
            wide = 2 * text["num_global_key_value_heads"] * text["global_head_dim"]
            return [(wide, None) if kind == "full_attention" else (usual, 1024) for kind in text["layer_types"]]
    return [(usual, None)] * num_layers


def dtype_bytes(values: dict[str, Any]) -> int:
    return 2 if values.get("dtype", values.get("torch_dtype")) in ("bfloat16", "float16") else 4


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a model whose configuration is written here; per layer, as numbers of fp16 and of fp32."""

    values: dict[str, Any]
    billions: float
    active_billions: float
    kv_numbers: int = 0
    further_kv_numbers: int = 0
    conv_numbers: int = 0
    state_numbers: int = 0


KNOWN = {
    "mamba2-2.7b": Known(
        values={
            "model_type": "mamba2",
            "hidden_size": 2560,
            "num_hidden_layers": 64,
            "num_heads": 80,
            "head_dim": 64,
            "state_size": 128,
            "n_groups": 1,
            "vocab_size": 50288,
            "tie_word_embeddings": True,
        },
        billions=2.702,
        active_billions=2.702,
        conv_numbers=64 * (2 * 2560 + 2 * 128) * 4,
        state_numbers=64 * 80 * 64 * 128,
    ),
    "falcon-mamba-7b": Known(
        values={
            "model_type": "falcon_mamba",
            "hidden_size": 4096,
            "intermediate_size": 8192,
            "num_hidden_layers": 64,
            "state_size": 16,
            "vocab_size": 65024,
            "tie_word_embeddings": False,
        },
        billions=7.273,
        active_billions=7.273,
        conv_numbers=64 * 8192 * 4,
        state_numbers=64 * 8192 * 16,
    ),
    "Jamba-v0.1": Known(
        values={"model_type": "jamba"},
        billions=51.57,
        active_billions=12.11,
        kv_numbers=4 * 2 * 8 * 128,
        further_kv_numbers=4 * 2 * 8 * 128,
        conv_numbers=28 * 2 * 4096 * 4,
        state_numbers=28 * 2 * 4096 * 16,
    ),
    "Qwen3-Next-80B-A3B": Known(
        values={"model_type": "qwen3_next"},
        billions=79.67,
        active_billions=3.87,
        kv_numbers=12 * 2 * 2 * 256,
        further_kv_numbers=12 * 2 * 2 * 256,
        conv_numbers=36 * (2 * 16 * 128 + 32 * 128) * 4,
        state_numbers=36 * 32 * 128 * 128,
    ),
    "DeepSeek-V2-Lite": Known(
        values={
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "vocab_size": 102400,
        },
        billions=15.706,
        active_billions=2.66,
        kv_numbers=27 * (512 + 64),
        further_kv_numbers=27 * (512 + 64),
    ),
    "Mistral-7B-v0.1": Known(
        values={"model_type": "mistral", "sliding_window": 4096},
        billions=7.2417,
        active_billions=7.2417,
        kv_numbers=32 * 2 * 8 * 128,
    ),
    "gemma-2-9b": Known(
        values={
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
        },
        billions=9.2417,
        active_billions=9.2417,
        kv_numbers=42 * 2 * 8 * 256,
        further_kv_numbers=21 * 2 * 8 * 256,
    ),
}
"""Windows, latents and states beyond the files, from papers and model cards; the other values are transformers' own."""


@pytest.mark.parametrize("name", KNOWN)
def test_windows_latents_and_states_take_what_is_counted_by_hand(name: str, tmp_path: Path) -> None:
    known = KNOWN[name]
    report = report_of({**known.values, "dtype": "bfloat16"}, tmp_path)
    assert report.unsupported is None
    assert report.num_parameters / 1e9 == pytest.approx(known.billions, rel=1e-3)
    assert report.num_active_parameters / 1e9 == pytest.approx(known.active_billions, rel=3e-3)
    assert report.kv_bytes_per_token == 2 * known.kv_numbers
    assert report.kv_bytes_per_further_token == 2 * known.further_kv_numbers
    assert report.state_bytes_per_row == 2 * known.conv_numbers + 4 * known.state_numbers


def test_every_file_is_known(shared_data: Path) -> None:
    folder = shared_data / "configs"
    assert sorted(str(file.relative_to(folder)) for file in folder.glob("*/*.json")) == sorted(PUBLISHED)


@every_file
def test_parameters_are_those_of_transformers_and_of_the_publication(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    values = read(shared_data, name)
    report = report_of(values, tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.bfloat16)
    kept = {*model.state_dict()}
    buffers = sum(buffer.numel() for key, buffer in model.named_buffers() if key in kept)
    assert report.num_parameters == model.num_parameters() + buffers
    total, active = PUBLISHED[name]
    assert report.num_parameters / 1e9 == pytest.approx(total, rel=1e-3)
    assert report.num_active_parameters / 1e9 == pytest.approx(active, rel=2e-3)
    assert report.weights == "none" and not report.has_tokenizer
    assert report.weight_bytes == pytest.approx(report.num_parameters * dtype_bytes(values), rel=1e-3)


@every_file
def test_kv_per_token_is_what_the_fields_of_the_configuration_make(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    values = read(shared_data, name)
    report = report_of(values, tmp_path)
    layers, size = numbers_by_layer(values), dtype_bytes(values)
    assert report.num_layers == len(layers)
    if report.architecture not in EXACT:
        assert report.unsupported is not None and repr(report.architecture) in report.unsupported
        assert (report.kv_bytes_per_token, report.context_tokens, report.decode_seconds) == (None, None, None)
        return
    assert report.kv_bytes_per_token == size * sum(numbers for numbers, _ in layers)
    assert report.kv_bytes_per_further_token == size * sum(numbers for numbers, window in layers if window is None)
    assert report.state_bytes_per_row == 0
    assert report.context_tokens == text_part(values).get("max_position_embeddings")
    table = layer_table(build_outline(tmp_path, torch.float32).config)
    for length in (1, 100, 5000, 20_000):
        kept = sum(numbers * min(length, window or length) for numbers, window in layers)
        assert table.kv_bytes(length, size) == size * kept
    quantized = values.get("quantization_config", {}).get("quant_method")
    assert report.unsupported is None if quantized is None else f"({quantized})" in str(report.unsupported)


@every_file
def test_a_dummy_of_a_few_of_its_layers_generates(shared_data: Path, tmp_path: Path, name: str) -> None:
    values = reduced(read(shared_data, name))
    written(values, tmp_path)
    model_type = read_model_config(tmp_path).model_type
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "float32", "max_model_len": 64, "max_num_seqs": 2}
    if model_type not in EXACT:
        with pytest.raises(UnsupportedModelError, match=repr(model_type)):
            LLM(tmp_path, **options)
        return
    with LLM(tmp_path, **options) as model:
        rows, params = [[1, 2, 3], list(range(20))], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        outputs, alone = model.generate(rows, params), model.generate(rows[1:], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [6, 6]
    assert alone[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    assert all(0 <= token < text_part(values)["vocab_size"] for token in outputs[0].outputs[0].token_ids)


_DEPTHS = ("num_hidden_layers", "n_layer")
_WIDTHS = (
    "hidden_size",
    "word_embed_proj_dim",
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "ffn_dim",
    "q_lora_rank",
    "kv_lora_rank",
    "num_attention_heads",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "n_head",
    "vocab_size",
    "vocab_size_per_layer_input",
)
_NUM_LAYERS = 4
"""A dense layer and one of experts, a window and a layer without, a chunk and a layer without."""


def reduced(values: dict[str, Any]) -> dict[str, Any]:
    """The same model with four layers, one of each kind among them, and its widths divided until a test can hold it."""
    text = {**text_part(values)}
    if "layer_types" in text:
        text["layer_types"] = [*dict.fromkeys(text["layer_types"])] * (_NUM_LAYERS // 2)
    for key in _DEPTHS:
        if key in text:
            text[key] = _NUM_LAYERS
    if "first_k_dense_replace" in text:
        text["first_k_dense_replace"] = 1
    factor = 1
    while text["hidden_size"] // factor > 1024:
        factor *= 2
    for key in _WIDTHS:
        if text.get(key):
            text[key] = max(1, text[key] // factor)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text |= tokens
    outer = {**values, **tokens, "text_config": text} if "text_config" in values else text
    return {key: value for key, value in outer.items() if key != "quantization_config"}
