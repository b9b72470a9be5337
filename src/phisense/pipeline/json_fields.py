"""Typed access to parsed JSON: a missing key or a value of another type raises an error that names
the file and the key.

Unknown keys are ignored: a later phisense may record more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..errors import ArtifactError

JsonObject = Mapping[str, object]
JsonValue = TypeVar("JsonValue")
_DO = "Evaluate again; a file of a model folder is written by phisense merge"
_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def type_name(kind: type) -> str:
    """What an error calls a value of type `kind`."""
    return _NAMES.get(kind, kind.__name__)


def converted(value: object, kind: type[JsonValue]) -> JsonValue | None:
    """`value` as a `kind`; None if it is of another type. A whole number is a number, too, any
    mapping is an object and a tuple a list; a bool is no number.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is dict and isinstance(value, Mapping):
        value = dict(value)
    elif kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return None
    return value


def as_object(value: object, source: str) -> JsonObject:
    """`value` as a JSON object. Raises ArtifactError, naming `source`, for anything else."""
    if not isinstance(value, Mapping):
        raise _damaged(f"{source} is not a JSON object", value, "an object")
    return value


def present(document: JsonObject, key: str, source: str, *, do: str = _DO) -> None:
    """Raise ArtifactError if `key` is missing; its value may be null."""
    if key not in document:
        raise ArtifactError(
            f"{source} lacks {key}",
            got=", ".join(map(str, document)) or "an empty object",
            do=do,
        )


def required(document: JsonObject, key: str, kind: type[JsonValue], source: str) -> JsonValue:
    """The value of `key`. Raises ArtifactError if it is missing, null, or not of type `kind`; see
    `converted`.
    """
    present(document, key, source)
    value = optional(document, key, kind, source)
    if value is None:
        raise _damaged(f"{source}: {key} is null", None, type_name(kind))
    return value


def optional(
    document: JsonObject, key: str, kind: type[JsonValue], source: str
) -> JsonValue | None:
    """Like `required`, but None where `key` is missing or null."""
    value = document.get(key)
    if value is None:
        return None
    found = converted(value, kind)
    if found is None:
        wanted = type_name(kind)
        raise _damaged(f"{source}: {key} is not {wanted}", value, wanted)
    return found


def objects(document: JsonObject, key: str, source: str) -> list[JsonObject]:
    """The list of objects under `key`; empty if it is missing."""
    found = optional(document, key, list, source) or []
    return [as_object(one, f"{source}: an entry of {key}") for one in found]


def table(document: JsonObject, key: str, source: str) -> dict[str, JsonObject]:
    """The mapping of names to objects under `key`; empty if it is missing."""
    found = optional(document, key, dict, source) or {}
    return {str(name): as_object(one, f"{source}: {key}.{name}") for name, one in found.items()}


def _damaged(what: str, got: object, wanted: str) -> ArtifactError:
    return ArtifactError(what, got=f"{got!r}"[:80], wanted=wanted, do=_DO)
