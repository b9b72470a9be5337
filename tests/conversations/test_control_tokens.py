"""A family's special tokens are told in a text, also if they are written otherwise than Phi-3's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phisense.conversations import check, rows
from phisense.families import known_special_tokens


def codes(folder: Path, text: str) -> list[str]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A turn."}]
    path = folder / "data.json"
    path.write_text(json.dumps([{"id": "one", "conversations": turns}]))
    return [one.code for one in check(path).rejects]


#: Tokens that are known as placeholders of other formats, of which the row has no image or none can
#: be read.
PLACEHOLDERS = {"<|image_pad|>": "image-count", "<|video_pad|>": "foreign-tag"}


@pytest.mark.parametrize("token", known_special_tokens())
def test_a_token_of_every_family_is_told(tmp_path: Path, token: str) -> None:
    told = PLACEHOLDERS.get(token, "control-token")
    assert codes(tmp_path, f"What begins with {token}?") == [told]


def test_so_is_one_that_begins_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "What begins with <start_of_turn>user?"
    assert codes(tmp_path, asked) == []
    pattern, starts = rows.special_token_finder([*known_special_tokens(), "<start_of_turn>"])
    monkeypatch.setattr(rows, "_SPECIAL_TOKEN", pattern)
    monkeypatch.setattr(rows, "_OTHER_STARTS", starts)
    assert codes(tmp_path, asked) == ["control-token"]
    assert codes(tmp_path, "What begins with <|user|>?") == ["control-token"]
    assert codes(tmp_path, "Is 1 < 2, and <s> struck out?") == []
