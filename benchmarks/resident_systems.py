"""The systems of `cpu_resident`, and the ways in which each may hold a model.

A further system is a module in `systems` with the interface of `systems/resident.py`, an environment in
`peer_environments.py`, and an entry in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Precision = Literal["full", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of weights, from the highest down. `full` is bfloat16, or float32 where that is faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a system reads instead of the checkpoint itself.

    Attributes:
        name: of the folder or file.
        module: that makes it, run by the interpreter of the system, or of Headrace where `by_headrace`.
        options: that the module is told.
    """

    name: str
    module: str
    options: Mapping[str, str] = field(default_factory=dict)
    by_headrace: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to hold a model in a precision; the best of a system's ways counts."""

    name: str
    options: Mapping[str, str]
    form: Form | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Attributes:
    module: run for each process of it.
    peer: whose environment it runs in; None for Headrace's own.
    static: whether rows of different lengths are answered in static batches, whose size is a choice.
    """

    module: str
    peer: str | None
    variants: Mapping[Precision, tuple[Variant, ...]]
    static: bool = False


def _by_dtype(form: Form | None = None, **options: str) -> tuple[Variant, ...]:
    return tuple(
        Variant(name=dtype, options={"dtype": dtype, **options}, form=form) for dtype in ("bfloat16", "float32")
    )


def _packed(quantization: str) -> Form:
    return Form(
        name=f"compressed-tensors-{quantization}",
        module="benchmarks.conversions.compressed_tensors",
        options={"quantization": quantization},
        by_headrace=True,
    )


def _gguf(kind: str) -> tuple[Variant, ...]:
    form = Form(name=f"{kind}.gguf", module="benchmarks.conversions.gguf_file", options={"type": kind})
    return (Variant(name=kind, options={}, form=form),)


_CTRANSLATE2 = Form(name="ctranslate2", module="benchmarks.conversions.ctranslate2_model")


def _openvino(weights: str) -> Form:
    return Form(
        name=f"openvino-{weights}", module="benchmarks.conversions.openvino_model", options={"weight_format": weights}
    )


SYSTEMS = {
    "headrace": System(
        module="benchmarks.systems.headrace_resident",
        peer=None,
        variants={
            "full": _by_dtype(),
            "int8": _by_dtype(quantization="int8"),
            "int4": _by_dtype(quantization="int4"),
        },
    ),
    "transformers": System(
        module="benchmarks.systems.transformers_resident", peer=None, variants={"full": _by_dtype()}, static=True
    ),
    "vllm": System(
        module="benchmarks.systems.vllm_resident",
        peer="vllm",
        variants={
            "full": _by_dtype(),
            "int8": _by_dtype(_packed("int8")),
            "int4": _by_dtype(_packed("int4")),
        },
    ),
    "llama.cpp": System(
        module="benchmarks.systems.llama_cpp_resident",
        peer="llama.cpp",
        variants={"full": _gguf("BF16") + _gguf("F32"), "int8": _gguf("Q8_0"), "int4": _gguf("Q4_0")},
    ),
    "ctranslate2": System(
        module="benchmarks.systems.ctranslate2_resident",
        peer="ctranslate2",
        variants={
            "full": tuple(
                Variant(name=kind, options={"compute_type": kind}, form=_CTRANSLATE2)
                for kind in ("bfloat16", "float32")
            ),
            "int8": tuple(
                Variant(name=kind, options={"compute_type": kind}, form=_CTRANSLATE2)
                for kind in ("int8_bfloat16", "int8_float32")
            ),
        },
        static=True,
    ),
    "openvino-genai": System(
        module="benchmarks.systems.openvino_resident",
        peer="openvino-genai",
        variants={
            "full": tuple(
                Variant(name=f"fp16 file, {kv} KV", options={"kv": kv}, form=_openvino("fp16")) for kv in ("u8", "f16")
            ),
            "int8": (Variant(name="int8 weights, u8 KV", options={"kv": "u8"}, form=_openvino("int8")),),
            "int4": (Variant(name="int4 weights, u8 KV", options={"kv": "u8"}, form=_openvino("int4")),),
        },
    ),
}
