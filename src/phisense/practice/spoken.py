"""Recorded questions about the practice world, by voices held out of the practice Whisper's
training, and its word error rate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.document_metrics import edit_distance

RECORDINGS_FOLDER = Path(__file__).parent / "parts" / "spoken"


@dataclass(frozen=True, slots=True)
class SpokenQuestion:
    """A recording (mono FLAC, 16 kHz) of `text`.

    `heldout` if its voice is not in the training data of the shipped Whisper.
    """

    path: Path
    text: str
    voice: str
    heldout: bool


def spoken_questions(folder: Path = RECORDINGS_FOLDER) -> list[SpokenQuestion]:
    """The shipped recordings, in the order of `spoken.json`."""
    listed = json.loads((folder / "spoken.json").read_text(encoding="utf-8"))
    return [
        SpokenQuestion(folder / row["file"], row["text"], row["voice"], row["heldout"])
        for row in listed
    ]


def normalize_transcript(text: str) -> str:
    """Normalize a transcript for comparison: lower case, no punctuation, single spaces."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Word error rate over all `(reference, transcript)` pairs together.

    Insertions, deletions and substitutions per reference word. Raises ValueError if there are no
    reference words.
    """
    words = errors = 0
    for spoken, transcript in pairs:
        wanted, got = normalize_transcript(spoken).split(), normalize_transcript(transcript).split()
        words += len(wanted)
        errors += edit_distance(wanted, got)
    if words == 0:
        raise ValueError("no spoken words to compare with")
    return errors / words
