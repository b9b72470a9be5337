"""Frozen dataclasses with a JSON form on disk: `to_dict` writes it, `from_dict` reads it.

The JSON key of a field is its name unless `key` sets another. Unknown keys are ignored, or
collected by a field marked with `rest()`, so that files of a later version can be read.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, Self, Union

from ..errors import ArtifactError
from .json_fields import converted, present, type_name

_DO = "It is damaged or of another version: make it again"
_KEY, _OMIT, _REST, _LOCAL = "key", "omit_none", "rest", "local"


def key(name: str, **options: Any) -> Any:
    """A field with the JSON key `name`; `options` are those of `dataclasses.field`."""
    return field(metadata={_KEY: name}, **options)


def omitted(name: str | None = None) -> Any:
    """A field with default None, whose JSON key is omitted where it is None."""
    return field(default=None, metadata={_OMIT: True, **({_KEY: name} if name else {})})


def rest() -> Any:
    """A field that collects all JSON keys of no other field."""
    return field(default_factory=dict, metadata={_REST: True})


def local(**options: Any) -> Any:
    """A field outside of the JSON, such as the folder that the file was read from."""
    return field(metadata={_LOCAL: True}, **options)


class Record:
    """Base class of frozen dataclasses whose fields declare their JSON.

    A field is a text, a number, a bool, `object` (any JSON), a Literal, another record or class
    with `to_dict` and `from_dict`, or a tuple, mapping or Optional of these.
    """

    def to_dict(self) -> dict[str, object]:
        """The JSON object, with keys in the order of the fields."""
        made: dict[str, object] = {}
        for one in _fields(type(self)):
            value = getattr(self, one.name)
            if one.metadata.get(_LOCAL) or (one.metadata.get(_OMIT) and value is None):
                continue
            made |= value if one.metadata.get(_REST) else {_key_of(one): _written(value)}
        return made

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> Self:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for anything but an object,
        for a missing key, and for a value of the wrong type.
        """
        found = _object(document, source)
        hints = _hints(cls)
        claimed: set[str] = set()
        given: dict[str, Any] = {}
        for one in _fields(cls):
            if one.metadata.get(_LOCAL) or one.metadata.get(_REST):
                continue
            name = _key_of(one)
            claimed.add(name)
            if name in found:
                given[one.name] = _read(hints[one.name], found[name], f"{source}: {name}")
            elif one.default is MISSING and one.default_factory is MISSING:
                present(found, name, source, do=_DO)
        for one in _fields(cls):
            if one.metadata.get(_REST):
                given[one.name] = {name: v for name, v in found.items() if name not in claimed}
        return cls(**given)


_found_hints: dict[type, Mapping[str, object]] = {}


def _hints(cls: type) -> Mapping[str, object]:
    """The resolved types of the fields, cached by class."""
    if cls not in _found_hints:
        _found_hints[cls] = typing.get_type_hints(cls)
    return _found_hints[cls]


def _fields(cls: Any) -> tuple[Field[Any], ...]:
    return fields(cls)


def _key_of(one: Field[Any]) -> str:
    return str(one.metadata.get(_KEY, one.name))


def _object(value: object, source: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(source, value, "an object")
    return {str(name): one for name, one in value.items()}


def _written(value: object) -> object:
    if isinstance(value, Record):
        return value.to_dict()
    to_dict = getattr(value, "to_dict", None)
    if to_dict is not None:
        return to_dict()
    if isinstance(value, Mapping):
        return {name: _written(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_written(one) for one in value]
    return value


def _read(hint: Any, value: object, source: str) -> Any:
    """Convert `value` to the type `hint`. Raises ArtifactError for a value of another type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is object or hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        if len(inner) > 2 and isinstance(value, inner):  # a union of plain types
            return value
        return _read(next(one for one in inner if one is not types.NoneType), value, source)
    if origin is Literal:
        if value not in inner:
            raise _wrong(source, value, ", ".join(map(str, inner)))
        return value
    if origin is tuple:
        return _tuple(inner, value, source)
    if origin is not None and issubclass(origin, Mapping):
        found = _object(value, source)
        return {name: _read(inner[1], one, f"{source}.{name}") for name, one in found.items()}
    from_dict = getattr(hint, "from_dict", None)
    if from_dict is not None:
        return from_dict(value, source)
    return _plain(hint, value, source)


def _tuple(inner: tuple[Any, ...], value: object, source: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(source, value, "a list")
    kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(value):
        raise _wrong(source, value, f"a list of {len(kinds)}")
    return tuple(
        _read(kind, one, f"{source}[{i}]")
        for i, (kind, one) in enumerate(zip(kinds, value, strict=True))
    )


def _plain(kind: type, value: object, source: str) -> object:
    found = converted(value, kind)
    if found is None:
        raise _wrong(source, value, type_name(kind))
    return found


def _wrong(source: str, got: object, wanted: str) -> ArtifactError:
    return ArtifactError(
        f"{source} is of another type",
        got=f"{got!r}"[:80],
        wanted=wanted,
        do=_DO,
    )
