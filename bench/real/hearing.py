"""The steps about speech: what is heard of people, and the questions asked by voice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import phisense

from . import tiny, voices
from .building import unpacked
from .judging import ask, evaluated
from .training import recipe_of
from .walk import Figures, Walk


def _transcriber(walk: Walk) -> phisense.Transcriber:
    part = tiny.SPEECH if walk.tiny else walk.folder / "parts" / "whisper-base"
    return phisense.Transcriber(part, device="cpu")


def _recordings(walk: Walk) -> list[voices.Recording]:
    if walk.tiny:
        return tiny.recordings()
    return voices.collect(
        unpacked(walk, "sphinx"),
        unpacked(walk, "aligner"),
        unpacked(walk, "evaluation"),
        None if walk.recording is None else Path(walk.recording),
    )


def hear_english(walk: Walk) -> Figures:
    """Word error rate on recordings of people who speak English, by kind."""
    recordings = [one for one in _recordings(walk) if one.language == "en"]
    heard = voices.listen(_transcriber(walk), recordings)
    _write_heard(walk, "english", heard)
    groups = {
        group: [one for one in heard if one.recording.group == group]
        for group in dict.fromkeys(one.group for one in recordings)
    }
    sentences = [one for one in heard if one.recording.group in voices.SENTENCES]
    return {
        "wer": voices.word_error_rate(sentences),
        "said": sum(len(voices.normalize(one.recording.said).split()) for one in sentences),
        **{group: voices.word_error_rate(one) for group, one in groups.items()},
    }


def hear_others(walk: Walk) -> Figures:
    """Languages found, character error rate as spoken, and loops, for other languages."""
    from phisense.speech.transcriber import is_repetitive

    recordings = [one for one in _recordings(walk) if one.language != "en"]
    if not recordings:
        return {"skipped": "the speech part hears English only"}
    transcriber = _transcriber(walk)
    spoken = voices.listen(transcriber, recordings, task="transcribe")
    english = voices.listen(transcriber, recordings)
    _write_heard(walk, "others", spoken)
    _write_heard(walk, "others-in-english", english)
    people = [one for one in spoken if one.recording.group == "foreign"]
    return {
        "recordings": len(recordings),
        "languages_found": sum(one.correct_language for one in spoken) / len(spoken),
        "cer": voices.character_error_rate(spoken),
        "cer_people": voices.character_error_rate(people),
        "loops": sum(is_repetitive(one.text or "") for one in english),
    }


def ask_by_voice(walk: Walk) -> Figures:
    """The held-out questions as they are heard of a neural voice, beside the typed ones."""
    recipe = recipe_of(walk, "photographs")
    held_out = recipe.path(recipe.data.held_out[0])
    rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    texts = sorted({row["text"] for row in rows})
    spoken = (
        tiny.speak(texts)
        if walk.tiny
        else voices.speak(
            next(unpacked(walk, "voice").glob("*.onnx")), texts, walk.folder / "spoken"
        )
    )
    heard = voices.understand(_transcriber(walk), spoken)
    asked = walk.folder / "data" / "photographs" / "heard.jsonl"
    asked.write_text(
        "".join(json.dumps({**row, "text": heard[row["text"]]}) + "\n" for row in rows),
        encoding="utf-8",
    )
    report = ask(walk, recipe, "photographs-heard", data=asked, conditions=("real",))
    typed = evaluated(walk, "photographs")
    accuracy = report.real.accuracy.value
    exact = sum(voices.normalize(text) == voices.normalize(heard[text]) for text in texts)
    return {
        "accuracy": accuracy,
        "of_typed": accuracy / typed if typed else None,
        "questions": len(texts),
        "heard_exactly": exact,
    }


def _write_heard(walk: Walk, name: str, heard: Sequence[voices.Heard]) -> None:
    folder = walk.folder / "heard"
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "file": one.recording.path.name,
            "group": one.recording.group,
            "language": one.recording.language,
            "found": one.found,
            "said": one.recording.said,
            "heard": one.text,
        }
        for one in heard
    ]
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
