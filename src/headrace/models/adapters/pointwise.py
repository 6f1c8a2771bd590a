"""RMSNorm, gated MLPs and rotations, which most models write alike: on CPUs the C++ library runs each in one pass.

They are known by what their code says, whatever it is called; all others run as they are.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, MethodType

from torch import Tensor, nn
from torch._C import DisableTorchFunction

from headrace.kernels.library import library
from headrace.kernels.pointwise import Activation, NormForm, gated, rms_norm, rotated
from headrace.kernels.types import is_known
from headrace.models.transformers_api import ForeignModule, GELUTanh, SiLUActivation

_HIDDEN = """input_dtype = x.dtype
x = x.to(torch.float32)
variance = x.pow(2).mean(-1, keepdim=True)
x = x * torch.rsqrt(variance + self.variance_epsilon)
"""
_NORM = "return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)"
_NORM_FORMS = {
    f"{_HIDDEN}return self.weight * x.to(input_dtype)": NormForm.WEIGHT_TIMES_ROUNDED,
    f"{_HIDDEN}return (self.weight * x).to(input_dtype)": NormForm.WEIGHT_TIMES_NUMBER,
    f"{_HIDDEN}return (self.weight.to(torch.float32) * x).to(input_dtype)": NormForm.WEIGHT_TIMES_NUMBER,
    "output = self._norm(x.float())\noutput = output * (1.0 + self.weight.float())\nreturn output.type_as(x)": (
        NormForm.ONE_PLUS_WEIGHT
    ),
}
"""Llama and most others; OLMo; Nemotron-H; Gemma, whose `_norm` is `_NORM`."""
_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
_MLPS = {f"return {_GATED}", f"down_proj = {_GATED}\nreturn down_proj"}
_ACTIVATIONS: dict[type, Activation] = {
    SiLUActivation: Activation.SILU,
    nn.SiLU: Activation.SILU,
    GELUTanh: Activation.GELU_TANH,
}
_ROTATE, _ROTATE_HALF = "apply_rotary_pos_emb", "rotate_half"
_ROTATION = """cos = cos.unsqueeze(unsqueeze_dim)
sin = sin.unsqueeze(unsqueeze_dim)
q_embed = q * cos + rotate_half(q) * sin
k_embed = k * cos + rotate_half(k) * sin
return (q_embed, k_embed)"""
_HALF_TURN = """x1 = x[..., :x.shape[-1] // 2]
x2 = x[..., x.shape[-1] // 2:]
return torch.cat((-x2, x1), dim=-1)"""

Rotation = Callable[..., tuple[Tensor, Tensor]]


def adapt(module: ForeignModule) -> bool:
    """Takes over such a module, or an attention's rotation, where there is a library; returns whether it did."""
    return library() is not None and (_adapt_norm(module) or _adapt_mlp(module) or _adapt_attention(module))


def _adapt_norm(module: ForeignModule) -> bool:
    form = _NORM_FORMS.get(_body(type(module).forward))
    if form is None or (form is NormForm.ONE_PLUS_WEIGHT and _body(type(module)._norm) != _NORM):
        return False
    module.headrace_form = form
    module.headrace_epsilon = module.eps if form is NormForm.ONE_PLUS_WEIGHT else module.variance_epsilon
    module.forward = MethodType(_norm_forward, module)
    return True


def _norm_forward(self: ForeignModule, hidden: Tensor) -> Tensor:
    """(..., W) -> (..., W)."""
    found = library()
    with DisableTorchFunction():  # here and below: no product is to be looked for, which takes time
        if found is None or not _are_known(hidden, self.weight):
            normalised: Tensor = type(self).forward(self, hidden)
            return normalised
        return rms_norm(found, hidden, self.weight, self.headrace_epsilon, self.headrace_form)


def _adapt_mlp(module: ForeignModule) -> bool:
    if _body(type(module).forward) not in _MLPS or type(module.act_fn) not in _ACTIVATIONS:
        return False
    module.headrace_activation = _ACTIVATIONS[type(module.act_fn)]
    module.forward = MethodType(_mlp_forward, module)
    return True


def _mlp_forward(self: ForeignModule, hidden: Tensor) -> Tensor:
    """(..., E) -> (..., E)."""
    gate, up, found = self.gate_proj(hidden), self.up_proj(hidden), library()
    with DisableTorchFunction():
        if found is None or not _are_known(gate, up):
            inner = self.act_fn(gate) * up
        else:
            inner = gated(found, gate, up, self.headrace_activation)
    result: Tensor = self.down_proj(inner)
    return result


def _adapt_attention(module: ForeignModule) -> bool:
    """Gives an attention a `forward` of its own that rotates otherwise; that of its class stays as it is."""
    forward = type(module).forward
    known = getattr(forward, "__globals__", {})
    own, half = known.get(_ROTATE), known.get(_ROTATE_HALF)
    if not isinstance(forward, FunctionType) or _ROTATE not in forward.__code__.co_names or own is None or half is None:
        return False
    if _body(own) != _ROTATION or _body(half) != _HALF_TURN:
        return False
    names = {**known, _ROTATE: partial(_rotate, own)}
    changed = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(changed, module)
    return True


def _rotate(
    own: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """What transformers' function, `own`, does with queries and keys (1, H, T, W) and angles (1, T, W)."""
    found = library()
    with DisableTorchFunction():
        are_angles_known = unsqueeze_dim == 1 and cos.shape == sin.shape and cos.shape[0] == 1 and _are_known(cos, sin)
        if found is None or not (are_angles_known and _can_be_rotated(q, cos) and _can_be_rotated(k, cos)):
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        queries, keys = (rotated(found, numbers[0].transpose(0, 1), cos[0], sin[0]) for numbers in (q, k))
        return queries.transpose(0, 1)[None], keys.transpose(0, 1)[None]


def _can_be_rotated(numbers: Tensor, cos: Tensor) -> bool:
    return (
        is_known(numbers)
        and numbers.dtype is cos.dtype
        and numbers.dim() == 4
        and numbers.shape[0] == 1
        and numbers.shape[2:] == cos.shape[1:]
        and numbers.stride(3) == 1
    )


def _are_known(first: Tensor, second: Tensor) -> bool:
    """Whether the library goes through both together."""
    return is_known(first) and second.is_cpu and first.dtype is second.dtype


@cache
def _body(function: Callable[..., object]) -> str:
    """What a function does, the last argument of a method of one being called x; empty where its text cannot be had."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError, TypeError):
        return ""
    if not isinstance(definition, ast.FunctionDef):
        return ""
    statements = definition.body[ast.get_docstring(definition) is not None :]
    text = "\n".join(ast.unparse(statement) for statement in statements)
    names = [argument.arg for argument in definition.args.args if argument.arg != "self"]
    return re.sub(rf"\b{names[0]}\b", "x", text) if len(names) == 1 else text
