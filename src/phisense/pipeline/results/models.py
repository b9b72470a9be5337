"""Results of merging and of exporting a model, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..json_fields import JsonObject
from ..records import Record, key, omitted, rest
from .base import SavedResult


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMeasurement(Record):
    """Loss per supervised token on the held-out probes, its difference to the reference's, and the
    share of greedy answers that equal the reference's.
    """

    loss: float
    same_answers: float
    delta_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeGate(Record):
    """The limits beyond which a merge is rejected."""

    max_delta_loss: float = key("most_delta_loss")
    min_same_answers: float = key("least_same_answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult(SavedResult):
    """A merged model folder, measured: `merge_report.json`.

    reference            what the others are compared with, and its loss on `probes` probes
    merged               the weights that were written
    on_original          the adapter on the base as it was before quantization; with LoRA only
    back_to_nf4          the merged weights quantized again; only if the base was quantized
    shuffled             negative control that the gate must reject: layers in reverse order
    projector_change     largest absolute change of a projector weight, which must be 0.0
    """

    FILE: ClassVar[str] = "merge_report.json"
    PLACE: ClassVar[str] = "model"

    reference: str
    reference_loss: float
    probes: int
    dtype: str
    arithmetic: JsonObject = field(default_factory=dict)
    projector_change: float
    merged: MergeMeasurement
    on_original: MergeMeasurement | None = omitted()
    back_to_nf4: MergeMeasurement | None = omitted()
    shuffled: MergeMeasurement
    gate: MergeGate
    extra: JsonObject = rest()

    @property
    def measurements(self) -> dict[str, MergeMeasurement]:
        """All measurements except the reference, by JSON key."""
        found = {
            "merged": self.merged,
            "on_original": self.on_original,
            "back_to_nf4": self.back_to_nf4,
            "shuffled": self.shuffled,
        }
        return {name: one for name, one in found.items() if one is not None}


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
