"""Typed results of an evaluation: the content of `scores.json` and of `phisense score --json`.

    scores.json
    {"task": "pope", "headline": "accuracy", "questions": 3000, "units": 3000,
     "caveats": [{"code", "what", "count"}, ...]        about answers under the first condition
     "real": {"figures": {"accuracy": {"value", "low", "high"}, ...},
              "kinds": {kind: {"n", "value", "low", "high"}}, "loss": 0.4},
     "blind": ..., "shuffled": ...,                      each condition that was evaluated
     "constant": ...,                                    the commonest answer to each question
     "looks": {"verdict": "looks", "blind" or "too few", "figure": "accuracy",
               "over": {"blind": {"value", "low", "high", "above_zero"}, ...}},
     "about": {...}}                                     how the evaluation was measured

`EvaluationReport` is that file; `ScoreReport` is the JSON of `phisense score`. Unknown keys are
ignored when a file is read, except under `about`, which is kept as it is: a later phisense may
record more there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from .. import artifacts
from ..errors import ArtifactError
from ..intervals import Interval, PairedDifference
from ..pipeline.json_fields import JsonObject, as_object, objects, optional, required, table
from .caveats import Caveat
from .measurement import SCORES, Measurement

Condition = Literal["real", "blind", "shuffled"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)  # under which a model is asked
CONSTANT = "constant"  # the commonest answer to each question, without any model
SCORED: tuple[str, ...] = (*CONDITIONS, CONSTANT)
PAGE = "report.html"  # the page of a report folder

Verdict = Literal["looks", "blind", "too few"]


@dataclass(frozen=True, slots=True)
class KindScore(Interval):
    """The mean score of the `n` questions of one kind, with its Wilson interval."""

    n: int

    def to_dict(self) -> dict[str, float | None]:
        """`{"n", "value", "low", "high"}`."""
        return {"n": self.n, **Interval.to_dict(self)}

    @classmethod
    def from_dict(cls, document: object, source: str = SCORES) -> KindScore:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for anything else."""
        found = Interval.from_dict(document, source)
        n = required(as_object(document, source), "n", int, source)
        return cls(found.value, found.low, found.high, n)


@dataclass(frozen=True, slots=True)
class ConditionScores:
    """The metrics under one condition, the headline first; each is also an attribute:
    `scores.accuracy.value`.

    `kinds` holds the mean score of each kind of question, `loss` the mean loss of the references in
    nats per token, None if the engine does not compute it.

    `by_content` is the number of answers without their own image that fell out of the answer's
    form, and of which another text was scored (`chosen` in predictions.jsonl). `source` tells for
    the constant where its answers were counted: "training", "questions" or both.
    """

    metrics: Mapping[str, Interval]
    kinds: Mapping[str, KindScore] = field(default_factory=dict)
    loss: float | None = None
    by_content: int = 0
    source: str | None = None

    def __getattr__(self, name: str) -> Interval:
        """The metric of that name. Raises AttributeError, naming the existing ones."""
        metrics = object.__getattribute__(self, "metrics")
        if name in metrics:
            found: Interval = metrics[name]
            return found
        raise AttributeError(f"there is no figure {name!r}; there are {', '.join(metrics)}")

    def to_dict(self) -> dict[str, object]:
        """`{"figures", "kinds", "loss"}`, and `by_content` and `source` where there are any."""
        return {
            **_figures_and_kinds(self),
            "loss": self.loss,
            **({"by_content": self.by_content} if self.by_content else {}),
            **({} if self.source is None else {"source": self.source}),
        }

    @classmethod
    def from_dict(cls, document: object, source: str = SCORES) -> ConditionScores:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, source)
        metrics = required(found, "figures", dict, source)
        return cls(
            {name: Interval.from_dict(one, f"{source}: {name}") for name, one in metrics.items()},
            {
                kind: KindScore.from_dict(one, f"{source}: kind {kind}")
                for kind, one in table(found, "kinds", source).items()
            },
            optional(found, "loss", float, source),
            optional(found, "by_content", int, source) or 0,
            optional(found, "source", str, source),
        )


def _figures_and_kinds(scores: ConditionScores | ScoreReport) -> dict[str, object]:
    return {
        "figures": {name: one.to_dict() for name, one in scores.metrics.items()},
        "kinds": {kind: one.to_dict() for kind, one in scores.kinds.items()},
    }


@dataclass(frozen=True, slots=True)
class ImageUse:
    """Whether the model uses the image, by the metric `metric`: its paired differences `over` the
    conditions blind and shuffled and over the constant, whose intervals must all lie above zero. In
    reports of earlier versions there is no constant.

    The verdict is "looks", "blind", or "too few" if there are too few questions to tell.
    """

    verdict: Verdict
    metric: str
    over: Mapping[str, PairedDifference]

    @property
    def hardest(self) -> str:
        """The largest of the other conditions: the one that the model is least better than."""
        return min(self.over, key=lambda name: self.over[name].value)

    def to_dict(self) -> dict[str, object]:
        """`{"verdict", "figure", "over"}`."""
        return {
            "verdict": self.verdict,
            "figure": self.metric,
            "over": {condition: one.to_dict() for condition, one in self.over.items()},
        }

    @classmethod
    def from_dict(cls, document: object, source: str = SCORES) -> ImageUse:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, source)
        over = {
            condition: PairedDifference.from_dict(one, f"{source}: over {condition}")
            for condition, one in table(found, "over", source).items()
        }
        verdict = required(found, "verdict", str, source)
        if verdict not in get_args(Verdict):
            raise ArtifactError(
                f"{source} has an unknown verdict",
                got=repr(verdict),
                wanted=", ".join(get_args(Verdict)),
                do="Evaluate again",
            )
        return cls(cast("Verdict", verdict), required(found, "figure", str, source), over)


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The result of `evaluate`, and the content of `scores.json`.

    `questions` is the number of questions, `units` the number of independent bootstrap units among
    them, and `headline` the name of the metric that the verdict is about. Each condition that was
    evaluated is an attribute: `report.real.accuracy.value`.
    """

    task: str
    headline: str
    questions: int
    units: int
    conditions: Mapping[str, ConditionScores]
    caveats: tuple[Caveat, ...] = ()
    looks: ImageUse | None = None
    about: Measurement = field(default_factory=Measurement)
    folder: Path | None = None

    @property
    def page(self) -> Path | None:
        """The page of the report folder; None if the report is not on disk."""
        return None if self.folder is None else self.folder / PAGE

    @property
    def real(self) -> ConditionScores:
        """The scores with each question's own image."""
        return self._condition("real")

    @property
    def blind(self) -> ConditionScores:
        """The scores without an image."""
        return self._condition("blind")

    @property
    def shuffled(self) -> ConditionScores:
        """The scores with another question's image."""
        return self._condition("shuffled")

    @property
    def constant(self) -> ConditionScores:
        """The scores of the commonest answer to each question, the same for every model."""
        return self._condition(CONSTANT)

    def _condition(self, name: str) -> ConditionScores:
        """Scores under a condition. Raises AttributeError if it was not evaluated."""
        if name in self.conditions:
            return self.conditions[name]
        raise AttributeError(
            f"the condition {name} was not evaluated; there are {', '.join(self.conditions)}"
        )

    @property
    def verdict(self) -> Verdict | None:
        """Whether the model uses the image; None unless all three conditions were evaluated."""
        return None if self.looks is None else self.looks.verdict

    def metric(self, condition: str, name: str) -> Interval | None:
        """A metric under a condition; None if either does not exist."""
        scores = self.conditions.get(condition)
        return None if scores is None else scores.metrics.get(name)

    def metric_names(self) -> list[str]:
        """The names of the metrics of all conditions, each once, in their order."""
        return list(dict.fromkeys(name for one in self.conditions.values() for name in one.metrics))

    def to_dict(self) -> dict[str, object]:
        """The content of `scores.json`."""
        return {
            "task": self.task,
            "headline": self.headline,
            "questions": self.questions,
            "units": self.units,
            "caveats": [one.to_dict() for one in self.caveats],
            **{name: scores.to_dict() for name, scores in self.conditions.items()},
            **({} if self.looks is None else {"looks": self.looks.to_dict()}),
            **({"about": self.about.to_dict()} if self.about.record else {}),
        }

    @classmethod
    def from_dict(
        cls, document: object, *, folder: Path | None = None, source: str = SCORES
    ) -> EvaluationReport:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, source)
        if "headline" not in found:
            raise ArtifactError(
                f"{source if folder is None else folder} was written by an earlier phisense",
                got="figures without intervals",
                do="Evaluate again",
            )
        looks = found.get("looks")
        return cls(
            required(found, "task", str, source),
            required(found, "headline", str, source),
            required(found, "questions", int, source),
            optional(found, "units", int, source) or 0,
            dict(_conditions(found, source)),
            tuple(Caveat.from_dict(one, source) for one in objects(found, "caveats", source)),
            None if looks is None else ImageUse.from_dict(looks, f"{source}: looks"),
            Measurement(optional(found, "about", dict, source) or {}),
            folder,
        )

    @classmethod
    def load(cls, folder: Path) -> EvaluationReport:
        """Read `scores.json` of a report folder. Raises ArtifactError if it is missing or was
        written by an earlier phisense.
        """
        return cls.from_dict(
            artifacts.read_json(folder / SCORES), folder=folder, source=str(folder / SCORES)
        )


def _conditions(found: JsonObject, source: str) -> Iterator[tuple[str, ConditionScores]]:
    """The scores by condition. Raises ArtifactError if there are none."""
    ran = [name for name in SCORED if name in found]
    if not set(ran) & set(CONDITIONS):
        raise ArtifactError(
            f"{source} has no figures",
            got=", ".join(map(str, found)),
            wanted=f"at least one of {', '.join(CONDITIONS)}",
            do="Evaluate again",
        )
    for name in ran:
        yield name, ConditionScores.from_dict(found[name], f"{source}: {name}")


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The result of `phisense score`: metrics of existing answers. `missing` is the number of
    questions without an answer, which count as wrong.
    """

    task: str
    headline: str
    questions: int
    units: int
    missing: int
    caveats: tuple[Caveat, ...]
    seed: int
    metrics: Mapping[str, Interval]
    kinds: Mapping[str, KindScore] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The JSON that `phisense score --json` prints."""
        return {
            "task": self.task,
            "headline": self.headline,
            "questions": self.questions,
            "units": self.units,
            "missing": self.missing,
            "caveats": [one.to_dict() for one in self.caveats],
            "seed": self.seed,
            **_figures_and_kinds(self),
        }

    @classmethod
    def from_dict(cls, document: object, source: str = "the output of score") -> ScoreReport:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, source)
        scores = ConditionScores.from_dict(found, source)
        return cls(
            required(found, "task", str, source),
            required(found, "headline", str, source),
            required(found, "questions", int, source),
            required(found, "units", int, source),
            required(found, "missing", int, source),
            tuple(Caveat.from_dict(one, source) for one in objects(found, "caveats", source)),
            required(found, "seed", int, source),
            scores.metrics,
            scores.kinds,
        )
