"""Results of merging and of exporting a model, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from ...intervals import Interval
from ..json_fields import JsonObject
from ..records import Record, key, omitted, rest
from .base import SavedResult


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMeasurement(Record):
    """A model beside the reference on the held-out probes.

    loss             per supervised token; NaN if the model computes no numbers
    same_answers     share of greedy answers that equal the reference's
    delta_loss       difference of the loss to the reference's
    accuracy         share of right answers, of the questions that can be scored
    delta_accuracy   its paired difference to the reference's accuracy
    lost             share of those questions that the reference answers right and the model wrong
    lost_answers     their number
    gained_answers   the number of those that only the model answers right

    The last five are None where nothing could be scored, and in reports of earlier versions.
    """

    loss: float
    same_answers: float
    delta_loss: float
    accuracy: Interval | None = omitted()
    delta_accuracy: Interval | None = omitted()
    lost: Interval | None = omitted()
    lost_answers: int | None = omitted()
    gained_answers: int | None = omitted()

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> Self:
        """As `Record.from_dict`; JSON has null in place of NaN."""
        if isinstance(document, Mapping):
            document = {
                name: math.nan if value is None and name in ("loss", "delta_loss") else value
                for name, value in document.items()
            }
        return super(MergeMeasurement, cls).from_dict(document, source)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFigure:
    """A figure of a merge beside its limit: `setting` is the key of the recipe's `merge` section
    that sets the limit, `needed` the value of that key that would admit the figure, None if none
    would.
    """

    figure: str
    got: str
    limit: str
    passes: bool
    setting: str
    needed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeGate(Record):
    """The limits beyond which a merge is rejected; None does not limit.

    max_delta_loss      of the difference of the loss
    min_same_answers    of the share of equal answers; 0 does not limit
    max_lost_accuracy   of the fall in accuracy: rejected if its whole 95 % interval is beyond it
    max_lost_answers    of the share of answers that changed from right to wrong: rejected if its
                        whole 95 % interval is above it, so that one answer of few decides nothing
    """

    max_delta_loss: float = key("most_delta_loss")
    min_same_answers: float = key("least_same_answers")
    max_lost_accuracy: float | None = omitted()
    max_lost_answers: float | None = omitted()

    def judge(self, found: MergeMeasurement) -> tuple[JudgedFigure, ...]:
        """Each limited figure of a measurement beside its limit. A NaN passes no limit."""
        judged = [
            JudgedFigure(
                figure="loss",
                got=f"{found.delta_loss:+.5f}",
                limit=f"at most {self.max_delta_loss:+g}",
                passes=found.delta_loss <= self.max_delta_loss,
                setting="max_delta_loss",
                needed=_rounded_up(found.delta_loss),
            )
        ]
        if self.min_same_answers > 0:
            judged.append(
                JudgedFigure(
                    figure="same answers",
                    got=f"{found.same_answers:.1%}",
                    limit=f"at least {self.min_same_answers:.1%}",
                    passes=found.same_answers >= self.min_same_answers,
                    setting="min_same_answers",
                    needed=math.floor(found.same_answers * 1000) / 1000,
                )
            )
        fall, lost = found.delta_accuracy, found.lost
        if fall is not None and self.max_lost_accuracy is not None:
            judged.append(
                JudgedFigure(
                    figure="accuracy",
                    got=f"{fall.value:+.1%} [{fall.low:+.1%}, {fall.high:+.1%}]",
                    limit=f"not all of it below {-self.max_lost_accuracy:+.1%}",
                    passes=fall.high >= -self.max_lost_accuracy,
                    setting="max_lost_accuracy",
                    needed=_rounded_up(-fall.high),
                )
            )
        if lost is not None and self.max_lost_answers is not None:
            judged.append(
                JudgedFigure(
                    figure="answers from right to wrong",
                    got=f"{found.lost_answers}: {lost.value:.1%} [{lost.low:.1%}, {lost.high:.1%}]",
                    limit=f"not all of it above {self.max_lost_answers:.1%}",
                    passes=lost.low <= self.max_lost_answers,
                    setting="max_lost_answers",
                    needed=_rounded_up(lost.low),
                )
            )
        return tuple(judged)

    def admits(self, found: MergeMeasurement) -> bool:
        """Whether every limited figure is within its limit."""
        return all(one.passes for one in self.judge(found))


def _rounded_up(limit: float) -> float | None:
    """The next number of two digits that is no smaller; None for one that is no number."""
    if not math.isfinite(limit) or limit <= 0:
        return None if not math.isfinite(limit) else 0.0
    step = 10.0 ** (math.floor(math.log10(limit)) - 1)
    return float(f"{math.ceil(limit / step) * step:.12g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWeights(Record):
    """The weights of the written folder, reopened and found equal to those in memory: their number,
    and a SHA-256 over their names, dtypes, shapes and bytes.
    """

    weights: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult(SavedResult):
    """A merge, measured: `merge_report.json` of a model folder, or of a run whose merge was
    rejected.

    reference            what the others are compared with, and its loss on `probes` probes
    scored               how many of them have a short answer, and `reference_accuracy` on those
    merged               the weights that were written, as the folder holds them
    on_original          the adapter on the base as it was before quantization; with LoRA only
    back_to_nf4          negative control: the merged weights quantized again; only if the base was
                         quantized
    four_bit             the written folder as `--quantize` opens it: the base in NF4 with the
                         adapter beside it if the base was quantized, else the merged weights in NF4
    shuffled             negative control that the gate must reject: layers in reverse order
    projector_change     largest absolute change of a projector weight, which must be 0.0
    written              the written weights, which equal the merged ones
    rejected             what the gate rejected, a sentence each; None if it was admitted
    """

    FILE: ClassVar[str] = "merge_report.json"
    PLACE: ClassVar[str] = "model"

    reference: str
    reference_loss: float
    reference_accuracy: Interval | None = omitted()
    probes: int
    scored: int | None = omitted()
    dtype: str
    arithmetic: JsonObject = field(default_factory=dict)
    projector_change: float
    merged: MergeMeasurement
    on_original: MergeMeasurement | None = omitted()
    back_to_nf4: MergeMeasurement | None = omitted()
    four_bit: MergeMeasurement | None = omitted()
    shuffled: MergeMeasurement
    gate: MergeGate
    written: WrittenWeights | None = omitted()
    rejected: tuple[str, ...] | None = omitted()
    extra: JsonObject = rest()

    @property
    def measurements(self) -> dict[str, MergeMeasurement]:
        """All measurements except the reference, by JSON key."""
        found = {
            "merged": self.merged,
            "on_original": self.on_original,
            "back_to_nf4": self.back_to_nf4,
            "four_bit": self.four_bit,
            "shuffled": self.shuffled,
        }
        return {name: one for name, one in found.items() if one is not None}

    @property
    def tells(self) -> bool:
        """Whether the gate rejects the control, without which it says nothing of the merge."""
        return not self.gate.admits(self.shuffled)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAgreement(Record):
    """Agreement of a GGUF file with the model in torch over `positions` positions: share of equal
    argmax tokens, mean KL divergence in nats, share of equal greedy answers.
    """

    positions: int
    top1: float
    kl: float
    same_answers: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult(SavedResult):
    """A folder of GGUF files, measured: `export.json`.

    quant            the quantization of the text model
    holds            the smallest measured one, from `quant` on, that leaves enough answers the
                     same; None if none did
    min_same_answers the share of answers that `quant` should leave the same
    calibration_questions, calibrated_on
                     questions that made the importance matrix of the quantization, and where they
                     are from: "data", other ones than were compared, or "drawn images"
    questions        the number of questions on which the files were compared with torch
    mmproj           whether the projector was written for llama.cpp; if not, `mmproj_why_not`
    mmproj_caution   caveat for other programs that read it
    tokenizer_caution
                     caveat for other programs that tokenize with the file
    f16              agreement of the float16 file, which must equal the model
    quantized        agreement of the file that is kept; `f16` itself if that is kept
    bytes            size of each GGUF file
    """

    FILE: ClassVar[str] = "export.json"
    PLACE: ClassVar[str] = "folder"

    quant: str
    holds: str | None = None
    min_same_answers: float = 0.0
    calibration_questions: int = 0
    calibrated_on: str | None = None
    questions: int
    mmproj: bool
    mmproj_why_not: str | None
    arithmetic: JsonObject = field(default_factory=dict)
    mmproj_caution: str | None
    tokenizer_caution: str | None = None
    f16: FileAgreement
    bytes: Mapping[str, int]
    extra: JsonObject = rest()  # includes the agreement of the quantized file, under its name

    @property
    def quantized(self) -> FileAgreement:
        """The agreement of the file that is kept. Raises ArtifactError if it was not recorded."""
        if self.quant == "f16":
            return self.f16
        return FileAgreement.from_dict(self.extra.get(self.quant), f"{self.FILE}: {self.quant}")

    @property
    def agreements(self) -> dict[str, FileAgreement]:
        """The agreement of each measured file, by its quantization."""
        others = {
            name: FileAgreement.from_dict(found, f"{self.FILE}: {name}")
            for name, found in self.extra.items()
            if isinstance(found, dict) and name != self.quant
        }
        return {"f16": self.f16, self.quant: self.quantized, **others}
