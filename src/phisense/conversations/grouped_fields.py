"""`GroupedFields`: the keys of one mapping, sorted into groups by the tables of keys.py, and the
faults and notes about them.

An unknown key is never silently dropped: the parsers take the groups that they read; the rest is
either *unused*, which is counted and reported (`unused`), or *unsupported*, which rejects the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..safe_parsing import quote
from .cells import is_empty
from .json_reader import Fault
from .keys import (
    GROUPS_BY_LEVEL,
    IGNORED_GROUP,
    MEDIA,
    PREFERENCE,
    UNSUPPORTED_GROUP,
    UNSUPPORTED_KEYS,
    normalize_key,
)

_OF_TWO_MEANINGS = ("clip", "tool", "voice")
_NUMBER = re.compile(r"[+-]?\d{0,18}(?:\.\d{1,18}|\d)(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_PATH = re.compile(r"[/\\{\[]|\.[A-Za-z]\w{1,4}\s*\Z")
#: Groups that are kept even if their value is empty: an empty turn is a fault of its own.
_KEPT = {
    "": ("conversations", "messages", "texts"),
    "a turn": ("text",),
    "a part": ("text",),
    "a text": ("user", "assistant"),
}
_LETTER = re.compile(r"(?:option|choice)?([a-z])")
_NUMBERED = re.compile(r"(?:image|img|picture)(\d{1,3})")


class GroupedFields:
    """The keys of one mapping by group, each as [(original key, value)]; empty values are dropped.

    `letters` are the columns `A`, `B` ... (or `option_a` ...), `numbered` are `image_1`, `image_2`
    ...
    """

    __slots__ = ("found", "ignored", "letters", "level", "numbered", "rest")

    def __init__(self, mapping: dict[Any, Any], level: str = "") -> None:
        table, kept = GROUPS_BY_LEVEL[level], _KEPT[level]
        self.level = level
        self.found: dict[str, list[tuple[str, Any]]] = {}
        self.rest: list[str] = []
        # ignored, unless it is the only one to name an image
        self.ignored: list[tuple[str, Any]] = []
        self.letters: dict[str, tuple[str, Any]] = {}
        self.numbered: dict[int, tuple[str, Any]] = {}
        for written, value in mapping.items():
            key = str(written)
            group = table.get(key) or table.get(normalize_key(key))
            if group == IGNORED_GROUP:
                self.ignored.append((key, value))
                continue
            if group is None:
                self._unknown(key, value)
            elif value is not None if group in kept else not is_empty(value):
                known = self.found.setdefault(group, [])
                # drop a second key with the same value
                if not any(_equal(value, other) for _, other in known):
                    known.append((key, value))

    def _unknown(self, key: str, value: Any) -> None:
        if self.level == "" and (match := _LETTER.fullmatch(normalize_key(key))):
            self.letters[match[1]] = key, value
        elif is_empty(value):
            return
        elif self.level == "" and (match := _NUMBERED.fullmatch(normalize_key(key))):
            self.numbered[int(match[1])] = key, value
        else:
            self.rest.append(key)

    def copy(self) -> GroupedFields:
        """The same keys, to take from."""
        made = GroupedFields.__new__(GroupedFields)
        made.level, made.found = self.level, dict(self.found)
        made.rest, made.ignored = list(self.rest), list(self.ignored)
        made.letters, made.numbered = dict(self.letters), dict(self.numbered)
        return made

    def get(self, group: str) -> list[tuple[str, Any]]:
        """A group, which stays unused."""
        return self.found.get(group, [])

    def take(self, group: str) -> list[tuple[str, Any]]:
        """Return a group and mark it as used."""
        return self.found.pop(group, [])

    def put_back(self, group: str, pairs: list[tuple[str, Any]]) -> None:
        """Mark pairs that were taken as unused."""
        if pairs:
            self.found[group] = pairs

    def take_unsupported(self) -> list[Fault]:
        """The faults of unsupported keys, which are marked as used."""
        faults = []
        for key, value in self.take(UNSUPPORTED_GROUP):
            what = UNSUPPORTED_KEYS[normalize_key(key)]
            if what in MEDIA and _is_none(value):
                continue
            if (value is False and what != PREFERENCE) or (
                isinstance(value, str) and value.strip() in ("[]", "{}")
            ):
                continue
            if what in MEDIA and (
                _is_number(value)
                or (normalize_key(key) in _OF_TWO_MEANINGS and not _is_path(value))
            ):
                self.rest.append(key)  # a fraction, a frame count, the tool that wrote the row
                continue
            where = f" in {self.level}" if self.level else ""
            faults.append(
                (
                    "unsupported-key",
                    f"has {quote(key)}{where}, {what}, which phisense does not train on",
                )
            )
        return faults

    def unused(self) -> list[tuple[str, str]]:
        """(level, key) of everything that was not taken."""
        pairs = [
            *(one for found in self.found.values() for one in found),
            *self.letters.values(),
            *self.numbered.values(),
        ]
        told = [key for key, value in pairs if not is_empty(value)]
        return [(self.level, key) for key in (*told, *self.rest)]


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("null", "none", "nan")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_path(value: Any) -> bool:
    """Whether a value may be a file, a list of files or a mapping, and not a word or label."""
    return not isinstance(value, str) or _PATH.search(value) is not None


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def ambiguity_fault(pairs: Iterable[tuple[str, Any]], what: str) -> Fault:
    """The fault of several keys that could all be `what`."""
    return (
        "ambiguous-keys",
        f"has {what} under {' and '.join(quote(key) for key, _ in pairs)}, and they differ",
    )


def ignored_key_note(level: str, key: str) -> str:
    """The note about a row with an ignored key."""
    return f"has {quote(key)}{f' in {level}' if level else ''}, which is not read"
