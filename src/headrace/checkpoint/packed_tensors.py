"""Linear layers that a checkpoint holds in 8 or 4 bits: the compressed-tensors format of llm-compressor and vLLM.

Two of its forms are read, and written by `headrace quantize`: `int-quantized` with one scale per output (and tokens in
8 bits, each by a scale of its own), and `pack-quantized` with 4 bits in groups along the inputs. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from headrace.checkpoint.tensors import TensorEntry
from headrace.errors import CorruptCheckpointError, UnsupportedCheckpointError

CODES_PER_WORD = 8
_USE_OTHER = "use the original checkpoint and --quantization int8 or int4"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedScheme:
    """How a checkpoint's linear layers are packed.

    Attributes:
        group_size: inputs that share a scale; None where all of an output's do.
    """

    num_bits: Literal[4, 8]
    group_size: int | None

    def to_config(self, ignored: list[str]) -> dict[str, object]:
        """Returns the `quantization_config` of config.json; `ignored` linear layers are not packed."""
        is_4_bit = self.num_bits == 4
        weights = {
            "num_bits": self.num_bits,
            "type": "int",
            "symmetric": not is_4_bit,
            "strategy": "group" if is_4_bit else "channel",
            "group_size": self.group_size,
            "dynamic": False,
        }
        tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        form = "pack-quantized" if is_4_bit else "int-quantized"
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None if is_4_bit else tokens}
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignored,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedEntry:
    """The tensors that make one weight (N, K).

    Attributes:
        codes: int8 (N, K), or int32 (N, K / 8), eight codes a word, the first in its lowest bits.
        scales: (N, groups).
        zeros: int32 (N / 8, groups), packed along the outputs; None where codes are symmetric.
    """

    scheme: PackedScheme
    codes: TensorEntry
    scales: TensorEntry
    zeros: TensorEntry | None


def read_scheme(config_file: Path, config: Mapping[str, object]) -> PackedScheme | None:
    """Returns what config.json says of packed weights; None where it says nothing.

    Raises:
        UnsupportedCheckpointError: a form that this version does not read.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(settings, dict) or not settings:
        return None
    method = settings.get("quant_method") or settings.get("format") or "unknown method"
    scheme = _scheme(settings) if method == "compressed-tensors" else None
    if scheme is None:
        raise UnsupportedCheckpointError(
            f"{config_file}: the weights are quantized ({method}) in a way that this version does not read; expected "
            "compressed-tensors with int-quantized weights per channel and tokens in 8 bits, or pack-quantized ones of "
            f"4 bits in groups; {_USE_OTHER}"
        )
    return scheme


def fold_packed(
    entries: Mapping[str, TensorEntry], scheme: PackedScheme
) -> tuple[dict[str, TensorEntry], dict[str, PackedEntry]]:
    """Returns the tensors with each packed weight as one entry of its name and shape, and what these are made of.

    Raises:
        CorruptCheckpointError: a weight's tensors do not go together.
    """
    suffix = ".weight_packed" if scheme.num_bits == 4 else ".weight_scale"
    rest, folded, packed = dict(entries), {}, {}
    for base in [name.removesuffix(suffix) for name in entries if name.endswith(suffix)]:
        codes = rest.pop(f"{base}.weight_packed" if scheme.num_bits == 4 else f"{base}.weight", None)
        scales = rest.pop(f"{base}.weight_scale", None)
        zeros = rest.pop(f"{base}.weight_zero_point", None)
        rest.pop(f"{base}.weight_shape", None)
        if codes is None or scales is None:
            missing = "scales" if scales is None else "weight"
            raise CorruptCheckpointError(
                f"{entries[base + suffix].file}: {base} has no {missing}; download or copy the checkpoint again"
            )
        entry = PackedEntry(scheme=scheme, codes=codes, scales=scales, zeros=zeros)
        name = f"{base}.weight"
        folded[name] = replace(codes, name=name, dtype=scales.dtype, shape=_shape(entry))
        packed[name] = entry
    return {**rest, **folded}, packed


def _scheme(settings: Mapping[str, object]) -> PackedScheme | None:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or settings.get("kv_cache_scheme"):
        return None
    (group,) = groups.values()
    if not isinstance(group, dict) or group.get("targets") != ["Linear"] or group.get("output_activations"):
        return None
    weights, tokens = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or weights.get("type") != "int" or weights.get("actorder"):
        return None
    size = weights.get("group_size")
    match settings.get("format"), weights.get("num_bits"), weights.get("strategy"):
        case "pack-quantized", 4, "group" if isinstance(size, int) and size % CODES_PER_WORD == 0 and not tokens:
            return PackedScheme(num_bits=4, group_size=size)
        case "int-quantized", 8, "channel" if weights.get("symmetric") and _are_tokens_in_8_bits(tokens):
            return PackedScheme(num_bits=8, group_size=None)
    return None


def _are_tokens_in_8_bits(tokens: object) -> bool:
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return isinstance(tokens, dict) and wanted.items() <= tokens.items()


def _shape(entry: PackedEntry) -> tuple[int, ...]:
    """(N, K) of a packed weight, whose tensors are checked."""
    codes, scales, zeros, scheme = entry.codes, entry.scales, entry.zeros, entry.scheme
    num_outputs = codes.shape[0] if len(codes.shape) == 2 else 0
    wanted: tuple[str, int, tuple[int, ...] | None]
    if scheme.group_size is None:
        wanted, num_inputs = ("int8", 1, None), codes.shape[-1]
    else:
        num_inputs = codes.shape[-1] * CODES_PER_WORD
        num_groups = num_inputs // scheme.group_size
        wanted = ("int32", num_groups, (-(-num_outputs // CODES_PER_WORD), num_groups))
    dtype, num_groups, zeros_shape = wanted
    fits = codes.dtype == dtype and scales.shape == (num_outputs, num_groups) and num_outputs > 0
    if scheme.group_size is not None:
        fits = fits and num_inputs % scheme.group_size == 0
    if zeros is not None:
        fits = fits and zeros.dtype == "int32" and zeros.shape == zeros_shape
    if not fits:
        raise CorruptCheckpointError(
            f"{codes.file}: {codes.name} {codes.dtype} {list(codes.shape)} with scales {list(scales.shape)}"
            f"{'' if zeros is None else f' and zero points {list(zeros.shape)}'} is no weight of {scheme.num_bits} bits"
            f"{'' if scheme.group_size is None else f' in groups of {scheme.group_size}'}; "
            "download or copy the checkpoint again"
        )
    return (num_outputs, num_inputs)
