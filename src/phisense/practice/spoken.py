"""Recorded questions about the practice world, by voices the practice Whisper has never heard, and how well it hears them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .talk import questions
from .world import Scene

FOLDER = Path(__file__).parent / "parts" / "spoken"


@dataclass(frozen=True, slots=True)
class SpokenQuestion:
    """A recording (mono FLAC, 16 kHz) of `text`; `heldout` if its voice was kept from the training of the shipped Whisper."""

    path: Path
    text: str
    voice: str
    heldout: bool


def spoken_questions(folder: Path = FOLDER) -> list[SpokenQuestion]:
    """The shipped recordings, in the order of `spoken.json`."""
    listed = json.loads((folder / "spoken.json").read_text(encoding="utf-8"))
    return [SpokenQuestion(folder / row["file"], row["text"], row["voice"], row["heldout"]) for row in listed]


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: what two transcripts are compared by."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Insertions, deletions and substitutions per spoken word, over all `(spoken, transcript)` pairs together.

    Raises ValueError if nothing was spoken.
    """
    words = errors = 0
    for spoken, transcript in pairs:
        wanted, got = normalise(spoken).split(), normalise(transcript).split()
        words += len(wanted)
        errors += _edits(wanted, got)
    if words == 0:
        raise ValueError("no spoken words to compare with")
    return errors / words


def _edits(wanted: Sequence[str], got: Sequence[str]) -> int:
    """Levenshtein distance, row by row."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (word != other))
    return row[-1]


def scene_for(question_text: str, scenes: Sequence[Scene]) -> int | None:
    """The first scene in which exactly this wording has one right answer; None if there is none."""
    for index, scene in enumerate(scenes):
        if question_text in {question.text for question in questions(scene)}:
            return index
    return None
