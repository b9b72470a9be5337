"""`phisense demo`: every step of the pipeline on the practice data. Writes `summary.json`.

demo.json                                 the settings; it identifies the folder as a demo's
data/ features/ runs/ models/ reports/    the output of each step
summary.json                              the metrics, their thresholds, the seconds of each step
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from .. import artifacts, safe_replace
from ..errors import ArtifactError, PartError, UsageError
from ..evaluation.results import CONDITIONS
from ..parts import resolve_part
from ..pipeline import reuse
from ..pipeline.check import check, require_usable, write_rejects
from ..pipeline.evaluate import EvaluationReport
from ..pipeline.features import encode_features
from ..pipeline.progress import Finished, Notice, OnEvent, Progress, Section, ignore
from ..pipeline.results import MergeResult, TrainResult
from ..recipe import Recipe, load_recipe
from . import dataset
from .dataset import Sizes, write_world
from .spoken import spoken_questions, word_error_rate
from .summary import DemoAccuracy, DemoMerge, DemoSpeech, DemoSummary, DemoTraining
from .thresholds import DEFAULT_SCENES, evaluate_thresholds, require_thresholds

RECIPE = "practice"
SETTINGS_FILE = "demo.json"
SUMMARY = "summary.json"
#: Report -> the conditions under which it is evaluated.
REPORTS = {"heldout": CONDITIONS, "combinations": ("real",), "digits": ("real",)}


def demo_recipe(out: Path, seed: int) -> Recipe:
    """The recipe of the demo in the folder `out`."""
    return load_recipe(RECIPE, (f"root={orjson.dumps(str(out)).decode()}", f"seed={seed}"))


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    scenes: int = DEFAULT_SCENES,
    app_port: int | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> DemoSummary:
    """Run every step in order in the folder `out` and return the summary.

    The summary of a complete demo is returned again; an interrupted demo resumes and keeps its
    finished steps; `overwrite` starts over. `app_port` is a port that must be free before the first
    step. Each step begins with a Section and ends with a Finished event; the last one has the
    summary.

    Raises UsageError, writing nothing, if `out` holds anything but a demo; DemoError, once
    `summary.json` is written, if a metric misses its threshold (thresholds.py).
    """
    recipe = demo_recipe(out, seed)
    clock = _StepTimer(on_event)
    data, images = out / "data", recipe.image_folders[0]
    _preflight(recipe, app_port)
    summary_before = _prepare_folder(
        out, recipe, {"seed": seed, "scenes": scenes, "phisense": version("phisense")}, overwrite
    )
    if summary_before is not None:
        on_event(Notice(f"{out} was walked before; phisense demo --overwrite walks it anew"))
        return _finish(summary_before, out, on_event)

    clock.begin("world", "A world to look at: pictures, captions, questions")
    if not reuse.is_complete(data, dataset.WORLD_KIND):
        write_world(
            data,
            seed=seed,
            sizes=Sizes(train=scenes),
            on_event=on_event,
        )
    clock.begin("check", "check: is the data what it says?")
    _check(recipe, images, on_event)
    clock.begin("features", "features: every picture encoded once")
    on_event(Finished(encode_features(recipe, on_event=on_event)))
    clock.begin("train", "train: the projector, then the projector with QLoRA")
    trained = reuse.ensure_trained(recipe, "auto", on_event)
    clock.begin("merge", "merge: one model, and nothing lost")
    merged = reuse.ensure_merged(recipe, "auto", on_event)
    clock.begin("evaluate", "evaluate: does it look?")
    reports = {
        name: reuse.ensure_evaluated(
            recipe.model,
            [data / f"{name}.jsonl"],
            [images],
            out=out / "reports" / name,
            conditions=conditions,
            on_event=on_event,
        )
        for name, conditions in REPORTS.items()
    }
    clock.begin("speech", "speech: questions by voices it never heard")
    speech = _evaluate_speech(recipe.model, data, images, on_event)
    clock.end()
    summary = _summary(clock.seconds, seed, scenes, trained, merged, reports, speech)
    summary = replace(summary, floors=evaluate_thresholds(summary.to_dict()))
    artifacts.write_json(out / SUMMARY, summary.to_dict())
    for folder, kind in _outputs(out, recipe).items():
        safe_replace.drop_backup(folder, kind=kind)
    return _finish(summary, out, on_event)


def _check(recipe: Recipe, images: Path, on_event: OnEvent) -> None:
    """Check both data sets, which share their images, and render one conversation.

    Raises DataError for a row that cannot be used.
    """
    from ..showing import render_rows

    for number, one in enumerate(recipe.data_sets):
        path = recipe.path(one.path)
        found = check(
            path,
            images=[images],
            image_depth="headers" if number else "decode",
            on_event=on_event,
        )
        if found.rejected:
            found = write_rejects(found, safe_replace.unused_path(Path("rejects.jsonl")))
        on_event(Finished(found))
        require_usable(found, path)
    rows = render_rows(recipe.path(recipe.data.instruct[0].path), load_recipe(RECIPE), 1)
    on_event(Finished(tuple(rows)))


def _preflight(recipe: Recipe, app_port: int | None) -> None:
    """Check first what only the last steps need: the app's port, the parts, their compatibility.

    Raises UsageError for a port in use, PartError for parts.
    """
    from ..chat.servers import free_port
    from ..model import Phi3WithProjector

    if app_port is not None:
        free_port(app_port)
    if recipe.speech is None:
        raise PartError("the recipe names no speech part", do="Set speech.part")
    resolve_part(recipe.speech.part)
    Phi3WithProjector.meta_from_recipe(recipe)


def _prepare_folder(
    out: Path, recipe: Recipe, settings: dict[str, Any], overwrite: bool
) -> DemoSummary | None:
    """Create the folder; returns the summary if this very demo is complete there.

    Raises UsageError before anything is changed.
    """
    made = _outputs(out, recipe)
    there = list(out.iterdir()) if out.is_dir() else []
    if there and not _is_demo(out):
        raise UsageError(
            f"{out} is no demo's folder",
            got=f"{there[0].name} in it",
            wanted="an empty one",
            do="Choose another --out",
        )
    if not out.is_dir() and out.exists():
        raise UsageError(f"{out} is no folder", do="Choose another --out")
    if there and not overwrite:
        before = artifacts.read_json(out / SETTINGS_FILE)
        if before != settings:
            raise UsageError(
                f"{out} holds another demo", got=_describe(before), wanted=_describe(settings),
                do="Choose another --out, or replace it with --overwrite",
            )  # fmt: skip
        reuse.check_unclaimed(recipe)
        path = out / SUMMARY
        return (
            DemoSummary.from_dict(artifacts.read_json(path), str(path)) if path.is_file() else None
        )
    for folder, kind in made.items():
        safe_replace.check_can_write(folder, kind=kind, overwrite=overwrite, keep_backup=True)
    out.mkdir(parents=True, exist_ok=True)
    if there:
        safe_replace.remove_file(out / SUMMARY)  # first: it marks everything else as complete
    for folder, kind in made.items():
        safe_replace.back_up(folder, kind=kind)
    artifacts.write_json(out / SETTINGS_FILE, settings)
    return None


def _is_demo(out: Path) -> bool:
    try:
        settings = artifacts.read_json(out / SETTINGS_FILE)
    except ArtifactError:
        return False
    return isinstance(settings, dict) and settings.keys() == {"seed", "scenes", "phisense"}


def _outputs(out: Path, recipe: Recipe) -> dict[Path, str]:
    """The artifacts of a demo, and their kinds."""
    return {
        out / "data": dataset.WORLD_KIND,
        recipe.store: "feature store",
        recipe.run: "run",
        recipe.model: "model folder",
        **{out / "reports" / name: "report" for name in REPORTS},
    }


def _describe(settings: object) -> str:
    return (
        ", ".join(f"{key} {value}" for key, value in settings.items())
        if isinstance(settings, dict)
        else repr(settings)
    )


def _finish(summary: DemoSummary, out: Path, on_event: OnEvent) -> DemoSummary:
    """Report the summary and check its metrics against the thresholds."""
    summary = replace(summary, folder=out)
    on_event(Finished(summary))
    require_thresholds(summary.floors, out, summary.scenes)
    return summary


def _evaluate_speech(model: Path, data: Path, images: Path, on_event: OnEvent) -> DemoSpeech:
    """Transcribe every shipped recording by a held-out voice, and answer each transcript about the
    held-out images it applies to.
    """
    from ..chat import ChatSession
    from ..chat.engines.base import ENGINES, EngineOptions
    from ..conversations import read_questions
    from ..errors import SoundError
    from ..evaluation.answer_metrics import is_final_answer_correct
    from ..model.folder import MODEL_KIND
    from ..speech import Transcriber
    from ..vision.image_io import open_image

    part = artifacts.read_manifest(model, kind=MODEL_KIND, verify=False)["speech"]
    if part is None:
        raise PartError("the recipe names no speech part", do="Set speech.part")
    ears, session = Transcriber(part), ChatSession(ENGINES["torch"].open(model, EngineOptions()))
    known = read_questions(data / "spoken.jsonl")
    recordings = [r for r in spoken_questions() if r.heldout]
    heard: list[tuple[str, str]] = []
    right: list[bool] = []
    for done, recording in enumerate(recordings, 1):
        try:
            text = ears.transcribe(recording.path).text
        except SoundError:
            text = ""
        heard.append((recording.text, text))
        for question in [q for q in known if q.text == recording.text]:
            session.set_image(open_image(images / str(question.image)))
            right.append(
                bool(text) and is_final_answer_correct("".join(session.ask(text)), question.answers)
            )
        on_event(Progress("listening", done, len(recordings), "recordings"))
    return DemoSpeech(
        wer=word_error_rate(heard),
        recordings=len(heard),
        asked=len(right),
        answer_accuracy=sum(right) / max(1, len(right)),
    )


def _summary(
    seconds: dict[str, float],
    seed: int,
    scenes: int,
    trained: TrainResult,
    merged: MergeResult,
    reports: dict[str, EvaluationReport],
    speech: DemoSpeech,
) -> DemoSummary:
    """The metrics, without thresholds."""
    held_out = reports["heldout"]
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return DemoSummary(
        seconds={**rounded, "total": round(sum(seconds.values()), 1)},
        seed=seed,
        scenes=scenes,
        cores=cores,
        accuracy=DemoAccuracy(
            real=held_out.real.accuracy.value,
            unseen_combinations=reports["combinations"].real.accuracy.value,
            digits=reports["digits"].real.accuracy.value,
            blind=held_out.blind.accuracy.value,
            shuffled=held_out.shuffled.accuracy.value,
            questions={name: report.questions for name, report in reports.items()},
        ),
        looks=str(held_out.verdict),
        merge=DemoMerge(
            delta_loss=merged.merged.delta_loss,
            same_answers=merged.merged.same_answers,
            projector_change=merged.projector_change,
        ),
        train=DemoTraining(
            projector_change=trained.projector_change,
            trainable=trained.trainable,
            trainable_expected=trained.trainable_expected,
            looks=trained.verdict.verdict,
        ),
        speech=speech,
    )


class _StepTimer:
    """Measures the seconds of each step and announces it."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._since = 0.0

    def begin(self, name: str, words: str) -> None:
        self.end()
        self.on_event(Section(words))
        self._name, self._since = name, time.monotonic()

    def end(self) -> None:
        if self._name is not None:
            self.seconds[self._name] = time.monotonic() - self._since
