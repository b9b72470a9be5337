"""Whisper base for CTranslate2, out of two packages that each hold a half of its weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phisense.errors import PartError

from .packages import write_folder

if TYPE_CHECKING:
    from phisense.speech import Transcriber

HALVES = ("model.bin.part1", "model.bin.part2")
FILES = ("config.json", "tokenizer.json", "vocabulary.json")
LAYERS = (6, 6)  # of the encoder and the decoder, as Whisper base has
VOCABULARY = 51_865  # tokens of a multilingual Whisper


#: A sentence out of LibriVox's *Sense and Sensibility*, in pocketsphinx's test data.
RECORDING = "librivox/sense_and_sensibility_01_austen_64kb-0880.wav"


@dataclass(frozen=True, slots=True)
class Check:
    """Layers of encoder and decoder, tokens, and what it heard of a recording, if it was given."""

    layers: tuple[int, int]
    tokens: int
    heard: str | None


def known_recording(sphinx: Path) -> tuple[Path, str]:
    """A recording, and what is said in it; `sphinx` is pocketsphinx's test/data."""
    path = sphinx / RECORDING
    return path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()


def build(
    first: Path, second: Path, *, folder: Path, recording: tuple[Path, str] | None = None
) -> Check:
    """Write `folder` from the two halves' folders, opened and listened with before it is named.

    `recording` is a sound file and what is said in it, in lower case without punctuation. Raises
    PartError if a file is missing, the model is not Whisper base, or it hears something else.
    """
    found: list[Check] = []

    def write(aside: Path) -> None:
        sources = {HALVES[0]: first, HALVES[1]: second, **dict.fromkeys(FILES, second)}
        for name, source in sources.items():
            if not (source / name).is_file():
                raise PartError("a package lacks a file of Whisper base", got=f"no {source / name}")
        with (aside / "model.bin").open("wb") as out:
            for name in HALVES:
                with (sources[name] / name).open("rb") as half:
                    shutil.copyfileobj(half, out)
        for name in FILES:
            shutil.copy(sources[name] / name, aside / name)
        found.append(check(aside, recording))

    write_folder(folder, write)
    return found[0]


def check(folder: Path, recording: tuple[Path, str] | None = None) -> Check:
    """Open the part as phisense opens it. Raises PartError if it is not Whisper base, or mishears
    the recording.
    """
    from phisense.speech import Transcriber

    from .voices import normalize

    transcriber = Transcriber(folder, device="cpu")
    layers, tokens = check_shape(folder, transcriber)
    heard = None
    if recording is not None:
        path, said = recording
        heard = normalize(transcriber.transcribe(path).text)
        if heard != normalize(said):
            raise PartError(
                f"Whisper base does not hear what is said in {path.name}", got=heard, wanted=said
            )
    return Check(layers, tokens, heard)


def check_shape(folder: Path, transcriber: Transcriber) -> tuple[tuple[int, int], int]:
    """The layers of encoder and decoder, and the number of tokens. Raises PartError if they are not
    those of Whisper base.
    """
    from phisense.speech.ctranslate2_model import layer_counts

    layers = layer_counts(folder)
    tokens = len(json.loads((folder / "vocabulary.json").read_text(encoding="utf-8")))
    if (layers, tokens, transcriber.multilingual) != (LAYERS, VOCABULARY, True):
        raise PartError(
            "the speech part is not Whisper base",
            got=f"{layers} layers, {tokens:,} tokens, multilingual: {transcriber.multilingual}",
            wanted=f"{LAYERS} layers, {VOCABULARY:,} tokens, multilingual",
        )
    return layers, tokens
