"""What every verb returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class VerbResult(Protocol):
    """What a verb returns: the typed result of its step, which knows its JSON."""

    def to_dict(self) -> Mapping[str, object]:
        """The JSON object."""
