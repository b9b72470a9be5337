"""What an import measured: `import_report.json` of the model folder, and the limits that it must
keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ..errors import PartError
from ..model.agreement import Agreement, Gate, Outputs, compare_outputs
from ..pipeline.json_fields import JsonObject
from ..pipeline.records import Record, omitted, rest
from ..pipeline.results import SavedResult

MAX_DIFFERENCE, MAX_KL, MIN_TOP1 = 1e-3, 1e-3, 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportGate(Record):
    """The limits of an import, of which those that are None do not apply."""

    largest_difference: float | None = omitted()
    kl: float | None = omitted()
    top1: float | None = omitted()

    def admits(self, found: Agreement) -> bool:
        """Whether the agreement keeps the limits."""
        gate = Gate(max_difference=self.largest_difference, max_kl=self.kl, min_top1=self.top1)
        return gate.admits(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRendering(Record):
    """Whether the source's chat template renders our question to the same ids; None if it has none
    or `refused` the question, with the reason.
    """

    source_has_template: bool
    refused: str | None = omitted()
    same_ids: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondComparison(Record):
    """Why an import was compared twice: the difference at first, and how far the source and the
    written model moved from their own first logits.
    """

    first_difference: float
    source_moved: float
    written_moved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport(SavedResult):
    """An imported model folder, measured: `import_report.json`.

    text_part, vision_part   model types of the source
    reference                what gave the source's logits: transformers, peft, or phisense's own
                             loader of adapters
    same_pixels              whether both image processors give the same pixels
    positions ... top1       as in `Agreement`
    asked_again              only if the first comparison was beyond the `gate`
    """

    FILE: ClassVar[str] = "import_report.json"
    PLACE: ClassVar[str] = "model"

    arithmetic: JsonObject = field(default_factory=dict)
    text_part: str
    vision_part: str
    adapter: bool
    reference: str
    dtype: str
    same_pixels: bool
    positions: int
    largest_difference: float
    kl: float
    top1: float
    gate: ImportGate
    prompt: ImportRendering
    asked_again: SecondComparison | None = omitted()
    extra: Mapping[str, object] = rest()

    @property
    def passes(self) -> bool:
        """Whether the logits keep the limits."""
        return self.gate.admits(
            Agreement(
                positions=self.positions,
                largest_difference=self.largest_difference,
                kl=self.kl,
                top1=self.top1,
            )
        )

    def asked_once_more(self, found: Agreement, why: SecondComparison) -> ImportReport:
        """The report with a second comparison in place of the first."""
        return replace(
            self,
            positions=found.positions,
            largest_difference=found.largest_difference,
            kl=found.kl,
            top1=found.top1,
            asked_again=why,
        )


def check_import(report: ImportReport) -> None:
    """Raise PartError unless the written model's logits match the source's."""
    if report.passes and report.same_pixels:
        return
    figures = (
        f"a logit {report.largest_difference:.2g} standard deviations off, KL"
        f" {report.kl:.2g}, top 1 {report.top1:.1%}"
    )
    if (again := report.asked_again) is not None:
        figures += (
            f"; before {again.first_difference:.2g}, the source {again.source_moved:.2g}"
            f" off itself, what was written {again.written_moved:.2g}"
        )
    raise PartError(
        "the imported model does not say what its source says, so it was not written",
        got=figures if report.same_pixels else f"pictures prepared otherwise, {figures}",
        wanted=", ".join(f"{name} {value}" for name, value in report.gate.to_dict().items()),
        do="Please report it with the source's config.json",
    )


def compare_logits(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Agreement:
    """Compare the logits `(T, V)` of each question with the reference's."""
    return compare_outputs(Outputs(logits=reference), Outputs(logits=other))
