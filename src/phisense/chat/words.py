"""Ids become text as they come, never half a character, whatever pieces the tokenizer cuts words into."""

from __future__ import annotations

from typing import Any

HALF = "\ufffd"  # what a tokenizer gives for the beginning of a character


class Words:
    """Of one answer: `push` each id and say what comes back; `rest` at the end."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._said = 0  # ids whose text was given out
        self._before = 0  # ids before those were given out earlier: the others are context, for what the tokenizer does at the edge

    def push(self, token: int) -> str:
        self.ids.append(token)
        return self._new(unfinished=False)

    def rest(self) -> str:
        """What was held back, if it became a character."""
        return self._new(unfinished=True).rstrip(HALF)

    def _new(self, *, unfinished: bool) -> str:
        said = self._text(self.ids[self._before : self._said])
        now = self._text(self.ids[self._before :])
        if now.endswith(HALF) and not unfinished:
            return ""
        self._before, self._said = self._said, len(self.ids)
        return now[len(said) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
