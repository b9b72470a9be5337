"""Gradio's session state store, with an eviction policy that is fair between clients."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from gradio.state_holder import StateHolder

_MAX_OWNERS = 4096  # owners kept, including those of sessions without state yet


class FairStateHolder(StateHolder):
    """Replaces Gradio's LRU state holder, in which one client with many new session hashes would
    evict all others.

    Evicts from the client with the most sessions: first those without a conversation, then those of
    the visitor with the most sessions, then the least recently used. `has_conversation` tells
    whether the session of a hash has a conversation.
    """

    def __init__(self, has_conversation: Callable[[str], bool]) -> None:
        super().__init__()
        self.has_conversation = has_conversation
        self._owners: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def register(self, session: str, client: str, visitor: str) -> None:
        """Record the owner of a session, unless it is known. `visitor` is "" without a cookie: all
        such sessions of a client count as one visitor's.
        """
        if session in self._owners:
            return
        self._owners[session] = (client, visitor)
        if len(self._owners) > _MAX_OWNERS:
            del self._owners[next(name for name in self._owners if name not in self.session_data)]

    def update(self, session_id: str) -> None:
        """Mark a session as most recently used; evict one if the capacity is exceeded."""
        with self.lock:
            if session_id in self.session_data:
                self.session_data.move_to_end(session_id)
            if len(self.session_data) > self.capacity:
                evicted = self._choose_evicted(session_id)
                del self.session_data[evicted]
                self.time_last_used.pop(evicted, None)
                self._owners.pop(evicted, None)

    def _choose_evicted(self, newest: str) -> str:
        whose = {name: self._owners.get(name, ("", "")) for name in self.session_data}
        parties, visitors = Counter(party for party, _ in whose.values()), Counter(whose.values())
        # least recently used first, so that `max` returns it on a tie
        others: list[str] = [name for name in self.session_data if name != newest]
        return max(
            others,
            key=lambda name: (
                parties[whose[name][0]],
                not self.has_conversation(name),
                visitors[whose[name]],
            ),
        )
