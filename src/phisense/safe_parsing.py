"""Parse untrusted YAML and JSON in bounded time and memory, or raise a readable error; and shorten
and quote untrusted text for messages. Untrusted regular expressions: see `safe_patterns`.

A few lines of YAML can nest aliases so that they expand to more nodes than memory holds; a mapping
can contain itself; `2026-13-45` and `!!python/...` raise exceptions of many kinds. Therefore the
limits are checked while parsing: bytes, nesting depth, and nodes with aliases expanded.
"""

from __future__ import annotations

import codecs
import re
import reprlib
from pathlib import Path
from typing import Any

import orjson
import yaml

from .errors import PhisenseError, RecipeError

MAX_YAML_BYTES = 256 * 2**10  # of YAML, which is parsed at about 100 KB a second
MAX_JSON_BYTES = 2 * 2**30
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_DIGITS = 100
_MAX_SHOWN = 200
MAX_PATH_LENGTH = 300  # characters of an image path that a message shows

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
)
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map", "int", "float"))
_BOMS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def shorten(value: object) -> str:
    """`value` as an error shows it: its ASCII repr, truncated."""
    return truncate(ascii(value))


def truncate(text: str) -> str:
    """The beginning of a text that is too long for a message, with an ellipsis; other texts
    unchanged.
    """
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def quote(value: object, max_length: int = 60) -> str:
    r"""Untrusted text for messages, findings and JSON: quoted like a Python repr, at most
    `max_length` characters of it.

    Control characters, lone surrogates, undecodable bytes and invisible characters are escaped
    (`\x1b`, `\udcfc`), so that the result can be written anywhere; letters of all scripts stay
    readable. Never raises, and takes constant time for a large value.
    """
    text = value if isinstance(value, str) else _bounded_str(value, max_length)
    return repr(text if len(text) <= max_length else text[:max_length] + "...")


def escape(value: object, max_length: int = 60) -> str:
    """As `quote`, without the quotation marks: for names that are already delimited."""
    return quote(value, max_length)[1:-1]


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode the text: it contains no lone surrogate and no undecodable byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounded_str(value: object, max_length: int) -> str:
    """`str(value)` of a value that may be very large or deep: only as much as is shown."""
    if isinstance(value, bytes):
        return str(value[: max_length + 1])
    brief = reprlib.Repr()
    brief.maxlevel = 4
    brief.maxdict = 8
    brief.maxlist = 8
    brief.maxtuple = 8
    brief.maxstring = max_length
    brief.maxother = max_length
    try:
        return brief.repr(value) if isinstance(value, dict | list | tuple | set) else str(value)
    except ValueError:  # an integer with more digits than Python converts
        return f"a {type(value).__name__} too large to be shown"


def read_bytes(path: Path, max_bytes: int, raises: type[PhisenseError]) -> bytes:
    """Read a file of at most `max_bytes` bytes; never reads more. Raises `raises`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise raises(f"{path} cannot be read", got=error.strerror) from error
    if len(data) > max_bytes:
        raise raises(
            f"{path} is too large",
            got=f"more than {_size(max_bytes)}",
            wanted=f"at most {_size(max_bytes)}",
        )
    return data


def decode_utf8(data: bytes, name: str, raises: type[PhisenseError]) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises `raises` for invalid bytes."""
    found = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        got = found or f"the byte {data[error.start]:#04x} at {error.start:,}"
        raise raises(f"{name} is not UTF-8", got=got, do="Save it as UTF-8") from error


def read_yaml(path: Path, raises: type[PhisenseError] = RecipeError) -> Any:
    """The single document of a YAML file, as `parse_yaml` returns it."""
    return parse_yaml(
        decode_utf8(read_bytes(path, MAX_YAML_BYTES, raises), str(path), raises), str(path), raises
    )


def parse_yaml(text: str, name: str, raises: type[PhisenseError] = RecipeError) -> Any:
    """Parse one document: mappings, lists, strings, numbers, booleans, null; a date stays a string.
    Aliases are expanded to copies.

    Raises `raises`, calling the document `name`, for invalid YAML, tags, duplicate keys, and more
    bytes, nodes, digits or levels than the limits allow.
    """
    if len(text) > MAX_YAML_BYTES:
        raise raises(
            f"{name} is too large",
            got=f"{len(text):,} characters",
            wanted=f"at most {MAX_YAML_BYTES:,}",
        )
    try:
        loader = _Loader(text)
        return _copy_aliases(loader.get_single_data())
    except _BoundError as error:
        raise raises(f"{name} {error}", got=error.got, wanted=error.wanted) from error
    except (yaml.YAMLError, ValueError, OverflowError, IndexError) as error:
        # for example a number without digits, or a code point beyond Unicode
        raise raises(f"{name} is not YAML", got=truncate(" ".join(str(error).split()))) from error


class _BoundError(Exception):
    def __init__(self, what: str, *, got: object = None, wanted: object = None) -> None:
        super().__init__(what)
        self.got, self.wanted = got, wanted


_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    first: [(tag, pattern) for tag, pattern in known if tag in _TAGS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with limits. The depth limit is enforced in the scanner, before any
    recursion.
    """

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # finished nodes by id: (nodes with aliases expanded, levels)
        self._sizes: dict[int, tuple[int, int]] = {}

    def fetch_flow_collection_start(self, kind: Any) -> None:
        super().fetch_flow_collection_start(kind)
        self._bound_levels(self.flow_level)

    def add_indent(self, column: int) -> bool:
        self._bound_levels(len(self.indents))
        return bool(super().add_indent(column))

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _BoundError(
                    f"holds itself at {_place(event)}",
                    got=f"the alias *{truncate(str(event.anchor))}",
                )
            return node
        if (tag := getattr(event, "tag", None)) is not None and tag not in _PLAIN:
            raise _BoundError(
                f"has a tag at {_place(event)}", got=shorten(tag), wanted="plain YAML without tags"
            )
        node = super().compose_node(parent, index)
        assert node is not None
        self._sizes[id(node)] = self._measured(node)
        return node

    def _measured(self, node: yaml.Node) -> tuple[int, int]:
        """Nodes and levels of a node whose children are already measured."""
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
            return 1, 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        children = (
            [child for pair in node.value for child in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        measured = [self._sizes[id(child)] for child in children]
        nodes = 1 + sum(size for size, _ in measured)
        levels = 1 + max((depth for _, depth in measured), default=0)
        if nodes > MAX_NODES:
            raise _BoundError(
                "holds too much",
                got=f"more than {MAX_NODES:,} values, aliases counted as what they stand for",
            )
        self._bound_levels(levels)
        return nodes, levels

    def _bound_levels(self, levels: int) -> None:
        if levels > MAX_DEPTH:
            raise _BoundError("is nested too deeply", got=f"more than {MAX_DEPTH} levels")


def _check_scalar(node: yaml.ScalarNode) -> None:
    if (found := _CONTROL.search(node.value)) is not None:
        raise _BoundError(
            f"has a character that is no text at {_place(node)}", got=shorten(found.group())
        )
    if node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_DIGITS:
        raise _BoundError(
            f"has an endless number at {_place(node)}",
            got=f"{len(node.value):,} digits",
            wanted=f"at most {MAX_DIGITS}",
        )


def _check_keys(node: yaml.MappingNode) -> None:
    met = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _BoundError(
                f"has a key that is no text at {_place(key)}", got="a list or a mapping"
            )
        if (key.tag, key.value) in met:
            raise _BoundError(
                f"has the key {truncate(key.value)} twice in one section, again at {_place(key)}",
                wanted="each key once",
            )
        met.add((key.tag, key.value))


def _place(node: Any) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _copy_aliases(tree: Any) -> Any:
    """Copy nodes that are referenced by several aliases, so that changing one leaves the others
    unchanged.
    """
    if isinstance(tree, dict):
        return {key: _copy_aliases(value) for key, value in tree.items()}
    return [_copy_aliases(value) for value in tree] if isinstance(tree, list) else tree


def read_bounded_json(
    path: Path, raises: type[PhisenseError], max_bytes: int = MAX_JSON_BYTES
) -> Any:
    """The content of a JSON file, as `parse_json` returns it."""
    return parse_json(read_bytes(path, max_bytes, raises), str(path), raises)


def parse_json(data: bytes, name: str, raises: type[PhisenseError]) -> Any:
    """Parse JSON. Raises `raises`, naming the text `name`, if it is invalid or nested
    too deeply.
    """
    try:
        value = orjson.loads(data.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise raises(f"{name} is not JSON", got=truncate(str(error))) from error
    if may_be_deep(data.count(b"["), data.count(b"{")) and is_too_deep(value):
        raise raises(f"{name} is nested too deeply", got=f"more than {MAX_DEPTH} levels")
    return value


def may_be_deep(*brackets: int) -> bool:
    """Whether a text with so many opening brackets can exceed the depth limit: a
    cheap first check.
    """
    return sum(brackets) > MAX_DEPTH


def is_too_deep(value: Any) -> bool:
    """Whether lists and mappings are nested deeper than the readers accept."""
    return nesting_depth(value) > MAX_DEPTH


def nesting_depth(value: Any) -> int:
    """Nesting depth of lists and mappings; 0 for scalars. Iterative, for the input may be deep."""
    deepest, now = 0, [value]
    while now := [one for one in now if isinstance(one, (list, dict))]:
        deepest += 1
        now = [child for one in now for child in (one.values() if isinstance(one, dict) else one)]
    return deepest


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MB" if count >= 2**20 else f"{count / 2**10:,.0f} KB"
