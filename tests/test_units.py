"""Durations and sizes as people read them."""

from __future__ import annotations

import pytest

from phisense.units import format_bytes, format_seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 ms"),
        (0.0004, "0 ms"),
        (0.37, "370 ms"),
        (0.9996, "1.0 s"),
        (3.44, "3.4 s"),
        (9.96, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7199.0, "120 min"),
        (19_800.0, "5.5 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (708_080, "708.1 KB"),
        (999_950, "1.0 MB"),
        (2e6, "2.0 MB"),
        (96.1e9, "96.1 GB"),
        (5e15, "5,000.0 TB"),
    ],
)
def test_sizes(count: float, words: str) -> None:
    assert format_bytes(count) == words
