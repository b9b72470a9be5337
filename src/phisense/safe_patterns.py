"""Compile untrusted regular expressions that match names in bounded time, or raise ValueError.

A pattern such as `(a+)+` makes Python's engine try a text in exponentially many ways. Therefore an
upper bound on these ways is computed from the parsed pattern before it is compiled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from .safe_parsing import truncate

MAX_PATTERN_LENGTH = 1000
MAX_MATCH_PATHS = (
    5 * 10**7
)  # ways in which a pattern may try to match a text of `MAX_NAME_LENGTH` characters
MAX_NAME_LENGTH = 100


def compile_safe_pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression that matches names of up to `MAX_NAME_LENGTH` characters in
    bounded time.

    Raises ValueError for an invalid one, and for one that could try a name in more than
    `MAX_MATCH_PATHS` ways, such as `(a+)+`.
    """
    if len(text) > MAX_PATTERN_LENGTH:
        raise ValueError(
            f"a pattern of {len(text):,} characters, at most {MAX_PATTERN_LENGTH:,} are read"
        )
    try:
        parsed = _parser.parse(text)
        if _count_match_paths(parsed) > MAX_MATCH_PATHS:
            raise ValueError(
                "the pattern could take for ever: it repeats what can match in several ways, such"
                " as (a+)+ or .*.*.*.*"
            )
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression ({truncate(str(error))})") from error


def _count_match_paths(parsed: Iterable[tuple[Any, Any]]) -> int:
    """An upper bound on the number of ways in which a sequence of items can match prefixes of a
    name.
    """
    choices, free = _counted(parsed)
    return min(choices * math.comb(MAX_NAME_LENGTH + free, free), MAX_MATCH_PATHS + 1)


def _counted(parsed: Iterable[tuple[Any, Any]]) -> tuple[int, int]:
    """Returns (ways without unbounded repeats of a single-way item such as `.*`, number of such
    repeats): `free` of them share a name of L characters in comb(L + free, free) ways.
    """
    choices, free = 1, 0
    for kind, about in parsed:
        more, endless = _of_item(kind, about)
        choices, free = min(choices * more, MAX_MATCH_PATHS + 1), min(free + endless, 20)
    return choices, free


def _of_item(kind: Any, about: Any) -> tuple[int, int]:
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
        least, most, body = about
        inner, longest = _count_match_paths(body), min(int(most), MAX_NAME_LENGTH)
        if inner == 1:
            return (1, 1) if longest == MAX_NAME_LENGTH else (longest - int(least) + 1, 0)
        return (inner**longest * (longest + 1) if longest <= 24 else MAX_MATCH_PATHS + 1), 0
    if kind is _constants.BRANCH:
        branches = [_counted(branch) for branch in about[1]]
        return sum(choices for choices, _ in branches), max(free for _, free in branches)
    if kind is _constants.GROUPREF_EXISTS:
        return _count_match_paths(about[1]) + _count_match_paths(about[2] or ()), 0
    if kind is _constants.ATOMIC_GROUP:
        return _counted(about)
    if kind in (_constants.SUBPATTERN, _constants.ASSERT, _constants.ASSERT_NOT):
        return _counted(about[-1])
    return 1, 0
