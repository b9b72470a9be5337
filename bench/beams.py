"""Words that the practice Whisper hears wrongly or not at all, by the width of its search, over its
recordings as they are and changed.

    python bench/beams.py [--beams 1 2 5]

Each of the shipped recordings is heard as it is, 8 % faster and slower (higher and lower), and with
white noise of 20 and 10 dB below it. A transcript is cut if it is a beginning of what was said.
Prints one JSON object; five minutes for each width on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

from phisense.errors import SoundError
from phisense.practice.spoken import (
    RECORDINGS_FOLDER,
    normalize_transcript,
    spoken_questions,
    word_error_rate,
)
from phisense.speech import Transcriber, read_audio
from phisense.speech.audio import SAMPLE_RATE


def changed(sound: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    kind, _, amount = how.partition(" ")
    if kind == "speed":
        places = np.arange(0, len(sound) - 1, float(amount))
        return np.interp(places, np.arange(len(sound)), sound)
    if kind == "noise":
        loud = np.sqrt(np.mean(np.square(sound)))
        return sound + rng.standard_normal(len(sound)) * loud * 10 ** (-float(amount) / 20)
    return sound


WAYS = ("as it is", "speed 1.08", "speed 0.92", "noise 20", "noise 10")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 5])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / "a.wav"
        ears = {
            beams: Transcriber(
                RECORDINGS_FOLDER.parent / "speech", device="cpu", beam_size=beams, threads=1
            )
            for beams in asked.beams
        }
        heard: dict[int, list[tuple[str, str]]] = {beams: [] for beams in asked.beams}
        rng = np.random.default_rng(0)
        for one in spoken_questions():
            for how in WAYS:
                sound = np.clip(changed(read_audio(one.path), how, rng), -1, 1)
                with wave.open(str(path), "wb") as file:
                    file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                    file.writeframes((sound * 32767).astype("<i2").tobytes())
                for beams, listener in ears.items():
                    try:
                        text = listener.transcribe(path).text
                    except SoundError:
                        text = ""
                    heard[beams].append((one.text, text))
                    if normalize_transcript(text) != normalize_transcript(one.text):
                        print(f"{beams} {one.voice}, {how}: {one.text} | {text}", file=sys.stderr)
    print(json.dumps({beams: figures(pairs) for beams, pairs in heard.items()}))


def figures(pairs: list[tuple[str, str]]) -> dict[str, float]:
    spoken = [(normalize_transcript(wanted), normalize_transcript(got)) for wanted, got in pairs]
    return {
        "recordings": len(spoken),
        "words": sum(len(wanted.split()) for wanted, _ in spoken),
        "word_error_rate": round(word_error_rate(spoken), 4),
        "exact": sum(wanted == got for wanted, got in spoken),
        "cut": sum(wanted != got and wanted.startswith(got) for wanted, got in spoken),
        "words_lost": sum(max(0, len(wanted.split()) - len(got.split())) for wanted, got in spoken),
    }


if __name__ == "__main__":
    main()
