"""The fields of a request that say which form its answer shall have, in OpenAI's spelling and in vLLM's two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from headrace.errors import RequestError
from headrace.jobs.json_lines import json_type
from headrace.sampling.structured_outputs import StructuredOutputs

_GUIDED_KEYS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
STRUCTURE_KEYS = ("response_format", "structured_outputs", *_GUIDED_KEYS)
_FORMAT_KEYS = ("type", "json_schema")
_SCHEMA_KEYS = ("schema", "name", "description", "strict")
_VLLM_KEYS = ("json", "regex", "choice", "grammar", "json_object")


def structure_asked(given: Mapping[str, Any]) -> dict[str, StructuredOutputs | None]:
    """Returns the change that `given` makes in the sampling parameters: none, a form, or no form (plain text).

    Raises:
        RequestError: two keys ask for a form, or one has a value that cannot be; `param` names it.
    """
    keys = [key for key in STRUCTURE_KEYS if key in given]
    asked: dict[str, StructuredOutputs] = {}
    for key in keys:
        try:
            structure = _read(key, given[key])
        except RequestError as error:
            _refuse(key, str(error), code=error.code)
        if structure is not None:
            asked[key] = structure
    if len(asked) > 1:
        first, second, *_ = asked
        _refuse(second, f"{first} asks for a form of the answer, too; give one of them")
    return {"structured_outputs": next(iter(asked.values()), None)} if keys else {}


def _read(key: str, value: Any) -> StructuredOutputs | None:
    if key == "response_format":
        return _response_format(value)
    if key == "structured_outputs":
        return _structured_outputs(value)
    return StructuredOutputs(**{key.removeprefix("guided_"): value})


def _response_format(value: Any) -> StructuredOutputs | None:
    fields = _object("response_format", value, _FORMAT_KEYS)
    kind = fields.get("type")
    if kind == "json_schema":
        named = _object("response_format.json_schema", fields.get("json_schema"), _SCHEMA_KEYS)
        if not isinstance(named.get("schema"), Mapping):
            _refuse("response_format", "json_schema.schema is missing; expected a JSON schema (an object)")
        return StructuredOutputs(json=named["schema"])
    if kind not in ("text", "json_object"):
        _refuse("response_format", f"type {kind!r}; expected 'text', 'json_object' or 'json_schema'")
    return StructuredOutputs(json=True) if kind == "json_object" else None


def _structured_outputs(value: Any) -> StructuredOutputs:
    fields = _object("structured_outputs", value, _VLLM_KEYS)
    if fields.get("json_object") not in (None, False, True):
        _refuse("structured_outputs", f"json_object is {fields['json_object']!r}; expected true")
    if fields.pop("json_object", False):
        if "json" in fields:
            _refuse("structured_outputs", "json and json_object are given; expected one of them")
        fields["json"] = True
    return StructuredOutputs(**fields)


def _object(where: str, value: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of an object that are not null."""
    if not isinstance(value, Mapping):
        _refuse(where, f"{json_type(value)}; expected an object", code="invalid_type")
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        _refuse(where, f"{unknown!r} is not supported; expected {', '.join(known)}", code="unsupported_parameter")
    return {key: item for key, item in value.items() if item is not None}


def _refuse(param: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    raise RequestError(f"{param}: {message}", code=code, param=param.partition(".")[0])
