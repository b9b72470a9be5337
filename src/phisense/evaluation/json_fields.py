"""Typed access to the JSON files of a report: a missing key or a wrong type raises a one-sentence
error.

Unknown keys are ignored: a later phisense may record more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..errors import ArtifactError

Object = Mapping[str, object]
T = TypeVar("T")
_DO = "Evaluate again; a file of a model folder is written by phisense merge"
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def as_object(value: object, source: str) -> Object:
    """`value` as a JSON object. Raises ArtifactError, naming `source`, for anything else."""
    if not isinstance(value, Mapping):
        raise _damaged(f"{source} is not a JSON object", value, "an object")
    return value


def present(document: Object, key: str, source: str) -> None:
    """Raise ArtifactError if `key` is missing; its value may be null."""
    if key not in document:
        raise ArtifactError(
            f"{source} lacks {key}",
            got=", ".join(map(str, document)) or "an empty object",
            do=_DO,
        )


def required(document: Object, key: str, kind: type[T], source: str) -> T:
    """The value of `key`. Raises ArtifactError if it is missing, null, or not of type `kind`; an
    integer is accepted as a float.
    """
    present(document, key, source)
    value = optional(document, key, kind, source)
    if value is None:
        raise _damaged(f"{source}: {key} is null", None, _NAMES.get(kind, kind.__name__))
    return value


def optional(document: Object, key: str, kind: type[T], source: str) -> T | None:
    """Like `required`, but None where `key` is missing or null."""
    value = document.get(key)
    if value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is dict and isinstance(value, Mapping):
        value = dict(value)
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = _NAMES.get(kind, kind.__name__)
        raise _damaged(f"{source}: {key} is not {wanted}", value, wanted)
    return value


def objects(document: Object, key: str, source: str) -> list[Object]:
    """The list of objects under `key`; empty if it is missing."""
    found = optional(document, key, list, source) or []
    return [as_object(one, f"{source}: an entry of {key}") for one in found]


def table(document: Object, key: str, source: str) -> dict[str, Object]:
    """The mapping of names to objects under `key`; empty if it is missing."""
    found = optional(document, key, dict, source) or {}
    return {str(name): as_object(one, f"{source}: {key}.{name}") for name, one in found.items()}


def _damaged(what: str, got: object, wanted: str) -> ArtifactError:
    return ArtifactError(what, got=f"{got!r}"[:80], wanted=wanted, do=_DO)
