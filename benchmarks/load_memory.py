"""Peak memory and speed of loading a checkpoint in a fresh process; prints one line of JSON.

    python benchmarks/load_memory.py                  # Llama-3.2-1B shape, 2.5 GB in bfloat16
    python benchmarks/load_memory.py --layers 2 --hidden 512 --vocabulary 8192

Writes a checkpoint of random weights to a temporary folder (`--folder` chooses where), loads it in a child process, and
removes it. Exits with 1 when the child's peak resident memory exceeds the checkpoint's size plus 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALLOWANCE_BYTES = 1024**3
_RANDOM_BLOCK_BYTES = 8 * 1024**2


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.load is not None:
        print(json.dumps(_load(arguments.load, arguments.dtype)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint_bytes = _write_checkpoint(Path(folder), arguments)
        child = [sys.executable, __file__, "--load", folder, "--dtype", arguments.dtype]
        measured = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
    bound_bytes = checkpoint_bytes + ALLOWANCE_BYTES
    within = measured["peak_bytes"] <= bound_bytes
    result = {
        "benchmark": "load_memory",
        "checkpoint_bytes": checkpoint_bytes,
        **measured,
        "bound_bytes": bound_bytes,
        "within_bound": within,
        "read_bytes_per_second": round(checkpoint_bytes / measured["load_seconds"]),
        "dtype": arguments.dtype,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result))
    return 0 if within else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--dtype", default="bfloat16", help="the dtype to load in; the checkpoint is in bfloat16")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    return parser


def _write_checkpoint(folder: Path, arguments: argparse.Namespace) -> int:
    """Writes config.json and model.safetensors, a block of random bytes at a time, and returns the latter's size."""
    hidden, heads = arguments.hidden, arguments.hidden // 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": 64,
        "vocab_size": arguments.vocabulary,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    key_value = config["num_key_value_heads"] * 64
    shapes = {"model.embed_tokens.weight": [arguments.vocabulary, hidden], "model.norm.weight": [hidden]}
    for layer in range(arguments.layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": [hidden],
            prefix + "post_attention_layernorm.weight": [hidden],
            prefix + "self_attn.q_proj.weight": [hidden, hidden],
            prefix + "self_attn.k_proj.weight": [key_value, hidden],
            prefix + "self_attn.v_proj.weight": [key_value, hidden],
            prefix + "self_attn.o_proj.weight": [hidden, hidden],
            prefix + "mlp.gate_proj.weight": [4 * hidden, hidden],
            prefix + "mlp.up_proj.weight": [4 * hidden, hidden],
            prefix + "mlp.down_proj.weight": [hidden, 4 * hidden],
        }
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        num_bytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + num_bytes]}
        position += num_bytes
    text = json.dumps(header).encode()
    # Any two bytes below 0x3f3f are a finite, small bfloat16.
    block = os.urandom(_RANDOM_BLOCK_BYTES).translate(bytes(byte & 0x3F for byte in range(256)))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, position, len(block)):
            stream.write(block[: min(len(block), position - start)])
    return position + 8 + len(text)


def _load(folder: Path, dtype: str) -> dict[str, float]:
    """Loads the checkpoint and returns what the process took; everything it imports counts."""
    import torch

    from headrace.checkpoint.checkpoint import Checkpoint
    from headrace.models.skeleton import build_skeleton
    from headrace.models.weight_map import build_weight_map
    from headrace.models.weights import WeightLoader

    checkpoint = Checkpoint.open(folder)
    model = build_skeleton(folder, getattr(torch, dtype))
    before_bytes = _status_bytes("VmRSS")
    start = time.perf_counter()
    with WeightLoader(model, build_weight_map(model, checkpoint)) as loader:
        loader.load_all()
    seconds = time.perf_counter() - start
    assert all(not parameter.is_meta for parameter in model.parameters())
    return {
        "peak_bytes": _status_bytes("VmHWM"),
        "before_loading_bytes": before_bytes,
        "model_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "load_seconds": round(seconds, 3),
    }


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux")


if __name__ == "__main__":
    sys.exit(main())
