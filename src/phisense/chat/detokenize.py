"""Incremental detokenization of a token stream."""

from __future__ import annotations

from typing import Any

REPLACEMENT_CHARACTER = "\ufffd"  # decoded from an incomplete UTF-8 sequence


class StreamingDetokenizer:
    """Incremental detokenizer for one answer: holds incomplete UTF-8 back until it is complete.

    Call `push` with each token id, and `flush` at the end.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._read_offset = 0  # ids whose text has been returned
        # Ids before this one are not decoded again. Those between the two offsets are context: text
        # can depend on the preceding token.
        self._prefix_offset = 0

    def push(self, token: int) -> str:
        """Append a token id; return the text that became complete, possibly ""."""
        self.ids.append(token)
        return self._take_new(unfinished=False)

    def flush(self) -> str:
        """Return the remaining text without an incomplete character at its end."""
        return self._take_new(unfinished=True).rstrip(REPLACEMENT_CHARACTER)

    def _take_new(self, *, unfinished: bool) -> str:
        said = self._decode(self.ids[self._prefix_offset : self._read_offset])
        now = self._decode(self.ids[self._prefix_offset :])
        if now.endswith(REPLACEMENT_CHARACTER) and not unfinished:
            return ""
        self._prefix_offset, self._read_offset = self._read_offset, len(self.ids)
        return now[len(said) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
