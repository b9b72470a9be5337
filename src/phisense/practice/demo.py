"""`phisense demo`: the whole road on the embedded default, by the same verbs a user types. Writes `summary.json`.

data/ features/ runs/ models/ reports/    what each verb wrote
summary.json                              the figures, what was promised of them, the seconds each verb took
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from .. import artefact, console
from ..errors import PartError
from ..recipe import load_recipe
from .dataset import Sizes, write_world
from .floors import SCENES, hold, judged
from .spoken import spoken_questions, word_error_rate

RECIPE = "practice"
Verb = Callable[..., Any]


def walk(out: Path, *, seed: int, scenes: int, app_port: int | None, verb: Verb) -> dict[str, Any]:
    """Runs every verb in order and returns the summary; with `app_port`, ends by serving the page there.

    Raises DemoError, once `summary.json` is written, if a figure is not what the demo promises (floors.py).
    """
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    root = f"root={orjson.dumps(str(out)).decode()}"
    recipe = load_recipe(RECIPE, (root,))
    changes = ("--set", root, "--set", f"seed={seed}")
    data, images = out / "data", recipe.image_folders[0]

    clock.begin("world", "A world to look at: pictures, captions, questions")
    with console.bars() as bar:
        write_world(data, seed=seed, sizes=Sizes(train=scenes), progress=lambda done, total: bar("drawing pictures", done, total))
    clock.begin("check", "check: is the data what it says?")
    for number, one in enumerate(recipe.data_sets):  # both sets are about the same pictures
        verb("check", recipe.path(one.path), "--images", images, "--pictures", "headers" if number else "decode")
    verb("show", recipe.path(recipe.data.instruct[0].path), "-n", 1)
    clock.begin("features", "features: every picture encoded once")
    verb("features", RECIPE, *changes)
    clock.begin("train", "train: the projector, then the projector with QLoRA")
    trained = verb("train", RECIPE, *changes)
    clock.begin("merge", "merge: one model, and nothing lost")
    merged = verb("merge", recipe.run)
    clock.begin("evaluate", "evaluate: does it look?")
    scores = {}
    for name, conditions in (("heldout", "all"), ("combinations", "real"), ("digits", "real")):
        where = ("--data", data / f"{name}.jsonl", "--images", images, "--image", conditions, "--out", out / "reports" / name)
        scores[name] = verb("evaluate", recipe.model, *where)
    clock.begin("speech", "speech: questions by voices it never heard")
    speech = _listen(recipe.model, data, images)
    clock.end()
    summary = _summary(clock.seconds, seed, scenes, trained, merged, scores, speech)
    summary["floors"] = judged(summary)
    artefact.write_json(out / "summary.json", summary)
    _tell(summary, out)
    hold(summary["floors"], out, scenes)
    if app_port is not None:
        verb("app", recipe.model, "--examples", data / "heldout.jsonl", "--images", images, "--port", app_port)
    return summary


def _listen(model: Path, data: Path, images: Path) -> dict[str, Any]:
    """Every shipped recording by a held-out voice: what was heard, and the answer about a held-out picture it can be asked about."""
    from ..chat import Session
    from ..chat.torch_engine import TorchEngine
    from ..conversations import read_questions
    from ..errors import SoundError
    from ..evaluation.answers import is_right
    from ..model.folder import KIND
    from ..speech import Transcriber
    from ..vision.pictures import open_picture

    part = artefact.read_manifest(model, kind=KIND, verify=False)["speech"]
    if part is None:
        raise PartError("the recipe names no speech part", do="Set speech.part")
    ears, session = Transcriber(part), Session(TorchEngine.open(model))
    known = read_questions(data / "spoken.jsonl")
    recordings = [r for r in spoken_questions() if r.heldout]
    heard: list[tuple[str, str]] = []
    right: list[bool] = []
    with console.bars() as bar:
        for done, recording in enumerate(recordings, 1):
            try:
                text = ears.transcribe(recording.path).text
            except SoundError:
                text = ""
            heard.append((recording.text, text))
            for question in [q for q in known if q.text == recording.text]:
                session.show(open_picture(images / str(question.image)))
                right.append(bool(text) and is_right("".join(session.ask(text)), question.answers))
            bar("listening", done, len(recordings))
    return {
        "wer": word_error_rate(heard),
        "recordings": len(heard),
        "asked": len(right),
        "answer_accuracy": sum(right) / max(1, len(right)),
    }


def _summary(
    seconds: dict[str, float], seed: int, scenes: int, trained: Any, merged: Any, scores: dict[str, Any], speech: Any
) -> dict[str, Any]:
    real = {name: scores[name]["real"]["figures"]["accuracy"] for name in scores}
    held_out = scores["heldout"]
    return {
        "seconds": {**{name: round(value, 1) for name, value in seconds.items()}, "total": round(sum(seconds.values()), 1)},
        "seed": seed,
        "scenes": scenes,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accuracy": {
            "real": real["heldout"]["value"],
            "unseen_combinations": real["combinations"]["value"],
            "digits": real["digits"]["value"],
            "blind": held_out["blind"]["figures"]["accuracy"]["value"],
            "shuffled": held_out["shuffled"]["figures"]["accuracy"]["value"],
            "questions": {name: scores[name]["questions"] for name in scores},
        },
        "looks": held_out["looks"]["verdict"],
        "merge": {
            "delta_loss": merged["merged"]["delta_loss"],
            "same_answers": merged["merged"]["same_answers"],
            "projector_change": merged["projector_change"],
        },
        "train": {
            **{key: trained[key] for key in ("projector_change", "trainable", "trainable_expected")},
            "looks": trained["looks"]["verdict"],
        },
        "speech": speech,
    }


def _tell(summary: dict[str, Any], out: Path) -> None:
    accuracy, merge, speech = summary["accuracy"], summary["merge"], summary["speech"]
    rows = [
        ["held-out scenes", f"{accuracy['real']:.3f}", _promise(summary, "accuracy.real")],
        ["  without the picture", f"{accuracy['blind']:.3f}", _promise(summary, "accuracy.blind")],
        ["  with another picture", f"{accuracy['shuffled']:.3f}", ""],
        ["unseen colour-shape pairs", f"{accuracy['unseen_combinations']:.3f}", _promise(summary, "accuracy.unseen_combinations")],
        ["unseen handwriting", f"{accuracy['digits']:.3f}", _promise(summary, "accuracy.digits")],
        ["verdict of the training", summary["train"]["looks"], _promise(summary, "train.looks")],
        ["verdict of the evaluation", summary["looks"], _promise(summary, "looks")],
        ["loss lost in the merge", f"{merge['delta_loss']:+.5f}", _promise(summary, "merge.delta_loss")],
        ["same answers after the merge", f"{merge['same_answers']:.1%}", _promise(summary, "merge.same_answers")],
        ["projector's change in the merge", f"{merge['projector_change']}", _promise(summary, "merge.projector_change")],
        ["word error rate, new voices", f"{speech['wer']:.3f}", ""],
        ["spoken questions answered right", f"{speech['answer_accuracy']:.3f}", ""],
        ["seconds in all", f"{summary['seconds']['total']:.0f}", ""],
    ]
    console.table("The road, walked", ["figure", "value", "promised"], rows)
    if any(floor["met"] is None for floor in summary["floors"].values()):
        console.out.print(f"{summary['scenes']:,} scenes: the accuracies are promised for {SCENES:,} or more, so they were not judged")
    console.out.print(f"summary -> {out / 'summary.json'}; pictures and answers -> {out / 'reports' / 'heldout' / 'report.html'}")


def _promise(summary: dict[str, Any], figure: str) -> str:
    """The floor of a figure, and whether it is met; in words where it was not judged."""
    floor = summary["floors"][figure]
    return {True: f"{floor['wanted']} ✓", False: f"{floor['wanted']} ✗", None: "not judged"}[floor["met"]]


class _Clock:
    """Seconds of each verb; announces them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._since = 0.0

    def begin(self, name: str, words: str) -> None:
        self.end()
        console.out.rule(words, align="left")
        self._name, self._since = name, time.monotonic()

    def end(self) -> None:
        if self._name is not None:
            self.seconds[self._name] = time.monotonic() - self._since
