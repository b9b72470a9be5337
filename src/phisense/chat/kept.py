"""What an engine keeps of each conversation between its turns, so that only new tokens are computed: bounded, and never shared."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

State = TypeVar("State")


class Shelf(Generic[State]):
    """The states of the `most` owners that spoke last. An owner gets its own and no other's; one that is gone leaves nothing behind.

    Owners are told apart as objects, whatever they say about equality.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._states: OrderedDict[int, tuple[weakref.ref[object], State]] = OrderedDict()
        self._lock = threading.RLock()  # a weak reference may call back while it is held

    def __len__(self) -> int:
        return len(self._states)

    def take(self, owner: object) -> State | None:
        """The owner's state, which leaves the shelf: a turn that breaks leaves nothing half-changed on it."""
        with self._lock:
            found = self._states.pop(id(owner), None)
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: object, state: State) -> list[State]:
        """Keeps `state` until the owner takes it or goes; returns the states that had to leave for it."""
        key = id(owner)
        with self._lock:
            self._states[key] = (weakref.ref(owner, lambda _: self._drop(key)), state)
            self._states.move_to_end(key)
            return [self._states.popitem(last=False)[1][1] for _ in range(len(self._states) - self.most)]

    def _drop(self, key: int) -> None:
        with self._lock:
            found = self._states.get(key)
            if found is not None and found[0]() is None:
                del self._states[key]


def shared(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the beginning that both have: what of a conversation need not be computed again."""
    return next((i for i, (one, other) in enumerate(zip(held, wanted, strict=False)) if one != other), min(len(held), len(wanted)))
