"""What the demo promises: each figure of its summary that must be so high, or so low, and where to look when it is not.

The accuracies are promised for the default number of scenes, any seed and every number format. That the model looks, and that its merge
lost nothing, is promised for any number of scenes: a walk whose model does not look has not arrived, however short it was meant to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DemoError
from .dataset import Sizes

SCENES = Sizes().train
_WORDS = {"≥": "at least", "≤": "at most", "=": "exactly"}
_RUN = "runs/practice/loss.png, runs/practice/train.json"


@dataclass(frozen=True, slots=True)
class Floor:
    """A `figure` of the summary, by its dotted keys, called `name`; `look` are files of the demo's folder that tell more."""

    figure: str
    name: str
    sign: Literal["≥", "≤", "="]
    wanted: float | str
    look: str
    any_scenes: bool = False

    def met(self, got: object) -> bool:
        """Not by a figure that is missing or not a number."""
        if isinstance(self.wanted, str):
            return got == self.wanted
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return False
        return {"≥": got >= self.wanted, "≤": got <= self.wanted, "=": got == self.wanted}[self.sign]


FLOORS = (
    Floor("accuracy.real", "accuracy on held-out scenes", "≥", 0.90, f"reports/heldout/report.html, {_RUN}"),
    Floor("accuracy.unseen_combinations", "accuracy on unseen colour-shape pairs", "≥", 0.78, f"reports/combinations/report.html, {_RUN}"),
    Floor("accuracy.digits", "accuracy on unseen handwriting", "≥", 0.83, f"reports/digits/report.html, {_RUN}"),
    Floor("accuracy.blind", "accuracy without the picture", "≤", 0.50, "reports/heldout/report.html"),
    Floor("train.looks", "the training's verdict", "=", "looks", _RUN, any_scenes=True),
    Floor("looks", "the evaluation's verdict", "=", "looks", f"reports/heldout/report.html, {_RUN}", any_scenes=True),
    Floor("merge.delta_loss", "the loss lost in the merge", "≤", 0.002, "models/practice/merge_report.json", any_scenes=True),
    Floor("merge.same_answers", "the same answers after the merge", "≥", 0.995, "models/practice/merge_report.json", any_scenes=True),
    Floor("merge.projector_change", "the projector's change in the merge", "=", 0.0, "models/practice/merge_report.json", any_scenes=True),
)


def judged(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{figure: {"got", "wanted", "met"}} of every floor; `met` is None where the summary's `scenes` are too few for it to be promised."""
    found: dict[str, dict[str, Any]] = {}
    for floor in FLOORS:
        got = _at(summary, floor.figure)
        promised = floor.any_scenes or summary["scenes"] >= SCENES
        found[floor.figure] = {"got": got, "wanted": f"{floor.sign} {floor.wanted}", "met": floor.met(got) if promised else None}
    return found


def hold(floors: Mapping[str, Mapping[str, Any]], out: Path, scenes: int) -> None:
    """Raises DemoError, naming every figure of `judged` that is missed, what it is, what was promised, and the files to look at."""
    missed = [floor for floor in FLOORS if floors[floor.figure]["met"] is False]
    if not missed:
        return
    look = dict.fromkeys(f for floor in missed for f in floor.look.split(", "))
    few = "" if scenes >= SCENES else f"; {scenes} scenes are few, and --scenes {SCENES} is the default"
    raise DemoError(
        f"the demo walked the whole road and did not arrive: {_listed([f'{floor.name} ({floor.figure})' for floor in missed])}",
        got=_listed([shown(floors[floor.figure]["got"]) for floor in missed]),
        wanted=_listed([f"{_WORDS[floor.sign]} {floor.wanted}" for floor in missed]),
        do=f"Look at {_listed(list(look))} in {out}{few}",
    )


def shown(got: object) -> str:
    """A figure, with digits enough to tell it from its floor."""
    return "none" if got is None else f"{got:.4g}" if isinstance(got, float) else str(got)


def _at(summary: Mapping[str, Any], figure: str) -> Any:
    at: Any = summary
    for key in figure.split("."):
        at = at.get(key) if isinstance(at, Mapping) else None
    return at


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
