"""Ids become text as they come, never half a character, whatever pieces the tokenizer cuts words into."""

from __future__ import annotations

from typing import Any

HALF = "�"  # what a tokenizer gives for the beginning of a character


class Words:
    """Of one answer: `push` each id, say what comes back; `rest` at the end."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._from = self._said = 0  # ids whose text is known; decoding begins a little before, where white space is settled

    def push(self, token: int) -> str:
        self.ids.append(token)
        whole = self._text(len(self.ids))
        if whole.endswith(HALF):
            return ""
        new = whole[len(self._text(self._said)) :]
        self._from, self._said = self._said, len(self.ids)
        return new

    def rest(self) -> str:
        """What never became a whole character."""
        return self._text(len(self.ids))[len(self._text(self._said)) :]

    def _text(self, end: int) -> str:
        return str(self.tokenizer.decode(self.ids[self._from : end], skip_special_tokens=True))
