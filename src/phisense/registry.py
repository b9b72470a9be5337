"""`Registry`: the implementations of one seam by name, each an object in a module of its own.

A seam is a place where something new goes: a language family, an encoder, a projector, an engine, a
training objective, an evaluation task, a data format. Its registry maps names to modules, so that
the names can be listed, as the command line and the recipe do, before anything is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from .errors import UsageError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The implementations of `seam` by name. `modules` maps each name to its module, whose
    attribute `attribute` is the implementation; it is imported when it is first looked up.
    """

    def __init__(self, seam: str, attribute: str, modules: dict[str, str]) -> None:
        self.seam = seam
        self.attribute = attribute
        self.modules = modules

    def __getitem__(self, name: str) -> T:
        """The implementation called `name`. Raises UsageError, with the nearest name, if there is
        none.
        """
        if name not in self.modules:
            near = difflib.get_close_matches(str(name), self.modules, n=1)
            raise UsageError(
                f"unknown {self.seam}",
                got=name,
                wanted=", ".join(self.modules),
                do=f"Did you mean {near[0]}?" if near else None,
            )
        found: T = getattr(import_module(self.modules[name]), self.attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __contains__(self, name: object) -> bool:
        return name in self.modules
