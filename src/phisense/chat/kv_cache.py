"""Per-session cache of KV state between turns, so that only new tokens are computed: bounded. Of
another session's state nothing is used but the beginning up to the first image, if both were given
it as one object, as the page gives its examples, and began with it: whoever shows an image of his
own has an object of his own.

What a position holds is told by its key: a token id, or at the positions of an image a negative
number that only this image has. States with equal keys are equal, whichever images stand where.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

State = TypeVar("State")


class SessionCache(Generic[State]):
    """LRU cache of per-session KV state, at most `capacity` sessions. Keys are weak references: a
    closed session frees its entry.

    Owners are compared by identity, not by equality.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._states: OrderedDict[int, tuple[weakref.ref[object], State]] = OrderedDict()
        # reentrant: a weak reference's callback may run while it is held
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._states)

    def pop(self, owner: object) -> State | None:
        """Remove and return the owner's state, so that a turn that fails leaves no partially
        updated state in the cache.
        """
        with self._lock:
            found = self._states.pop(id(owner), None)
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: object, state: State) -> list[State]:
        """Store the state; return the states that were evicted for it."""
        key = id(owner)
        with self._lock:
            self._states[key] = (weakref.ref(owner, lambda _: self._drop(key)), state)
            self._states.move_to_end(key)
            return [
                self._states.popitem(last=False)[1][1]
                for _ in range(len(self._states) - self.capacity)
            ]

    def find(self, wanted: Callable[[State], bool]) -> State | None:
        """A state that is `wanted`, the most recent first; it stays its owner's."""
        with self._lock:
            held = [state for _, state in reversed(self._states.values())]
        return next((state for state in held if wanted(state)), None)

    def pop_oldest(self) -> State | None:
        """Remove and return the state of the least recent session; None if there is none."""
        with self._lock:
            return self._states.popitem(last=False)[1][1] if self._states else None

    def _drop(self, key: int) -> None:
        with self._lock:
            found = self._states.get(key)
            if found is not None and found[0]() is None:
                del self._states[key]


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix: the part of a prompt that need not be recomputed."""
    return next(
        (i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )


def position_keys(
    ids: Sequence[int], image_id: int, images: Sequence[tuple[int, int]]
) -> list[int]:
    """The key of each position of a prompt, whose `images` are, in their order, (key, number of
    tokens).
    """
    of_images = itertools.chain.from_iterable(itertools.repeat(key, count) for key, count in images)
    return [next(of_images) if token == image_id else token for token in ids]


def shared_prefix_length(mine: Sequence[int], theirs: Sequence[int], opening: Sequence[int]) -> int:
    """Length of the common prefix of two prompts' keys up to the end of the first image: what may
    be known of another's conversation. 0 unless only `opening`, what the template writes before the
    image, stands there: of what another typed nothing may be known.
    """
    begin = len(opening)
    if list(mine[:begin]) != list(opening) or begin >= len(mine) or mine[begin] >= 0:
        return 0
    end = next((i for i in range(begin, len(mine)) if mine[i] != mine[begin]), len(mine))
    same = common_prefix_length(mine[:end], theirs)
    return same if same > begin else 0
