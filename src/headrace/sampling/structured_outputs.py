"""The form that an answer shall have: a JSON schema, a regular expression, one of some texts, or a grammar.

Free of torch, and of the library that enforces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from headrace.errors import RequestError

Kind = Literal["json", "regex", "choice", "grammar"]
_KINDS: tuple[Kind, ...] = ("json", "regex", "choice", "grammar")
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredOutputs:
    """What the whole text of an answer must be; exactly one field is set. The names are vLLM's.

    Attributes:
        json: a JSON schema, as an object or its text; True takes any JSON object. Stored as text, so that equal ones
            are equal and can be keys.
        regex: a regular expression that matches the text from its beginning to its end.
        choice: texts of which it is one. Stored as a tuple.
        grammar: a grammar in llguidance's variant of Lark; its first rule is `start`.

    Raises:
        RequestError: none or several are set, or a value cannot be. Whether a schema, an expression or a grammar is
            one that can be followed, the engine says when it checks the request.
    """

    json: str | Mapping[str, object] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) + " are" if given else "nothing is"
            _refuse(f"{found} given; expected exactly one of {', '.join(_KINDS)}")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for kind, text in (("regex", self.regex), ("grammar", self.grammar)):
            if text is not None and (not isinstance(text, str) or not text):
                _refuse(f"{kind} is {text!r}; expected a text")

    @property
    def kind(self) -> Kind:
        """Which field is set."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)


def _schema_text(value: object) -> str:
    """Returns a schema in one spelling; its keys keep their order, in which those of an answer come."""
    schema = _ANY_OBJECT if value is True else value
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        if isinstance(schema, Mapping):
            return json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        _refuse(f"json is no JSON: {error}; expected a schema")
    return _refuse(f"json is {str(value)[:60]!r}; expected a JSON schema (an object), or true for any object")


def _choices(value: object) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, list | tuple) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        _refuse(f"choice is {str(value)[:60]!r}; expected a list of texts, none of them empty")
    return texts


def _refuse(message: str) -> NoReturn:
    raise RequestError(message, code="invalid_value", param="structured_outputs")
