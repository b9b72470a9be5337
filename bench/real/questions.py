"""A question about an image with one right answer: as it is asked, and as it is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE_LINE = "<image>\n"


def conversation_of(question: dict[str, str]) -> dict[str, Any]:
    """A question and its answer as a conversation of their own, as they are asked later: in a
    longer one the answers before tell what is in the picture, and training need not look.
    """
    return {
        "id": question["question_id"],
        "image": question["image"],
        "conversations": [
            {"from": "human", "value": IMAGE_LINE + question["text"]},
            {"from": "gpt", "value": question["answer"]},
        ],
    }


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
