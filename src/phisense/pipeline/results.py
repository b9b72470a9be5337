"""What the steps of the pipeline return: frozen records whose JSON is stored on disk.

    FeaturesResult   the content of the store          (`phisense features --json`)
    TrainResult      runs/NAME/train.json
    MergeResult      models/NAME/merge_report.json
    ExportResult     MODEL-QUANT/export.json
    CheckResult      the defects of a data set         (`phisense check --json`)
    ConvertResult    a converted data set              (`phisense convert --json`)
    CompareResult    variants of a recipe, evaluated   (`phisense compare --json`)
    TuneResult       a hyperparameter search           (`phisense tune --json`)

`load(folder)` reads the file of a finished step, `to_dict()` returns its JSON. Keys of a later
version are kept under `extra`. The report of an evaluation is in `evaluation.results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from .. import artifacts
from ..intervals import Interval
from .json_fields import JsonObject
from .records import Record, key, local, omitted, rest

RUN_KIND = "run"  # of the manifest of a run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderResult(Record):
    """The result of a step that wrote `folder`; `PLACE` is what `--json` calls that folder."""

    PLACE: ClassVar[str]

    folder: Path = local(default=Path())


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedResult(FolderResult):
    """A result stored in its folder as the file `FILE`."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The result of the step that wrote `folder`. Raises ArtifactError if its file is missing
        or invalid.
        """
        path = folder / cls.FILE
        return replace(cls.from_dict(artifacts.read_json(path), str(path)), folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFormatPlan(Record):
    """Cost of one format of the feature store: bytes on disk, seconds to write it, and seconds to
    read it for one epoch.
    """

    format: str
    note: str
    bytes: int
    encode_seconds: float
    epoch_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesPlan(Record):
    """The cost of each format of the feature store for `images` distinct images, the recommended
    one, and `why`.
    """

    images: int = key("pictures")
    free_bytes: int
    formats: tuple[StoreFormatPlan, ...]
    recommended: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesResult(FolderResult):
    """A feature store after images were encoded into it.

    folder           the store
    images           how many of the recipe's images it contains, of which `distinct` differ
    stored           how many images it contains in all, including those of other recipes
    tokens, width    of each image: features `(tokens, width)`
    dtype            the format on disk: float16, int8, float32 or pixels
    computed_in      the number format that the encoder computed in
    encoder          a digest of `encoder_facts`, which identifies the store's encoder
    """

    PLACE: ClassVar[str] = "store"

    store_format: int
    encoder: str
    encoder_facts: Mapping[str, object] = key("facts")
    part: str | None
    dtype: str
    tokens: int
    width: int
    computed_in: str
    images: int = key("pictures")
    distinct: int
    names_digest: str = key("names")
    stored: int
    extra: JsonObject = rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageData(Record):
    """A data set of a stage: its file name, its rows, and its weight in the mixture."""

    name: str
    rows: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientComparison(Record):
    """The gradient of one part of the model with `weights` parameters: its norm, its cosine to the
    float32 gradient and the ratio of their norms; `error` and `numeric_ratio` compare the float32
    gradient with finite differences of the loss. None where one of the two is zero or was not
    measured.
    """

    part: str
    weights: int
    norm: float
    cosine: float | None
    norm_ratio: float | None
    numeric_ratio: float | None
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheckResult(Record):
    """A check of training's gradient at optimizer step `step`, on `rows` rows."""

    when: str
    step: int
    rows: int
    seconds: float
    parts: tuple[GradientComparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Record):
    """A finished stage of training.

    samples              conversations, packed into `rows`, of which `shortened` were truncated
    loss, last_loss      mean over all steps, and of the last logged step
    held_out_accuracy    share of held-out questions answered correctly at the stage's end, with the
    blind_accuracy       image and without it; None if not evaluated
    not_asked            reasons why held-out questions were not evaluated, one sentence each
    tokens_per_second    without padding
    projector_change     relative change of the projector, in the align stage only
    """

    samples: int
    data: tuple[StageData, ...] = ()
    rows: int
    shortened: int
    steps: int
    loss: float
    last_loss: float | None
    held_out_accuracy: float | None = key("held_out")
    blind_accuracy: float | None = key("blind")
    not_asked: tuple[str, ...] = key("unasked", default=())
    gradient_checks: tuple[GradientCheckResult, ...] = key("gradient_check", default=())
    tokens: int
    tokens_per_second: float
    seconds: float
    projector_change: float | None = omitted()
    extra: JsonObject = rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingVerdict(Record):
    """Whether the trained model uses its images, by the last evaluation on held-out questions.

    `verdict` is "looks", "blind" (no significant difference with the image), or "too few" (too few
    questions to tell, and no differences). `real`, `blind` and `shuffled` are the shares of
    `questions` about `pictures` different images that were answered correctly with the image,
    without it and with another question's; `difference` is real minus blind, `difference_shuffled`
    real minus shuffled, each with its 95 % interval.
    """

    verdict: Literal["looks", "blind", "too few"] = "too few"
    questions: int = 0
    pictures: int = 0
    real: float | None = None
    blind: float | None = None
    shuffled: float | None = None
    difference: Interval | None = None
    difference_shuffled: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(SavedResult):
    """A finished run: `train.json` of the run folder.

    arithmetic           number format, kernels, machine and library versions
    four_bit_codes       digest of the frozen 4-bit weights, None without quantization
    plain_weights        digest of the other frozen weights, None after full fine-tuning
    calibration          standard deviations of the text embeddings, and of a new projector's image
                         tokens before and after its calibration
    trainable            trained parameters; equals `trainable_expected`, computed from the shapes
    modules              names of the modules with LoRA, or of those that were trained without it
    projector_change     norm of the projector's change, relative to its norm before
    """

    FILE: ClassVar[str] = "train.json"
    PLACE: ClassVar[str] = "run"

    arithmetic: JsonObject = field(default_factory=dict)
    four_bit_codes: str | None
    plain_weights: str | None
    calibration: Mapping[str, float] | None = omitted()
    stages: Mapping[str, StageResult]
    trainable: int
    trainable_expected: int
    modules: tuple[str, ...]
    verdict: TrainingVerdict = key("looks")
    projector_change: float
    seconds: float
    extra: JsonObject = rest()


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
        return {"f16": self.f16, self.quant: self.quantized}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult(Record):
    """A variant of a recipe, trained and evaluated: accuracy on held-out questions with `tokens`
    image tokens, number of trained parameters, seconds of training, and its model folder.
    """

    variant: str
    tokens: int
    accuracy: Interval
    trainable: int
    train_seconds: float
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult(Record):
    """A recipe and variants of it: one row per variant and number of image tokens that it supports,
    the file of the table, and that of its plot.
    """

    rows: tuple[VariantResult, ...]
    comparison: str
    plot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult(Record):
    """A trial of a search. `value` is the share of held-out questions answered correctly, or None
    if the trial did not finish, with the reason in `why`; `curve` holds (evaluation number, share)
    during training; `seconds` is None if the trial did not finish.
    """

    number: int
    state: str
    value: float | None
    settings: Mapping[str, str | int | float | bool | None]
    seconds: float | None
    why: str | None
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult(Record):
    """A search: its best trial, all `trials`, the recipe file of the best, and the report."""

    best: TrialResult
    trials: tuple[TrialResult, ...]
    recipe: str
    report: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding(Record):
    """A defect of a data set, or a note: `what` completes the sentence "row 7 ...", or "the file
    ..." where `row` is 0. `rows` is the number of affected rows, for notes that are counted.
    """

    row: int
    id: str | None
    code: str
    what: str
    do: str
    rows: int | None = omitted()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult(Record):
    """What a data set contains, and its defects.

    format         JSON, JSONL, CSV, Parquet or a folder; `shapes` counts the layouts of its rows
    good           rows that can be trained on; `rejected` is the number of those that cannot
    turns          answers in the good rows
    images         distinct images; `without_image` counts the rows without one
    counts         number of findings by code
    defects        findings that reject a row; `notes` do not
    rejects        the file that lists the defects, None if none was written
    """

    format: str
    shapes: Mapping[str, int]
    rows: int
    good: int
    rejected: int
    turns: int
    images: int = key("pictures")
    without_image: int = key("without_picture")
    counts: Mapping[str, int]
    defects: tuple[DataFinding, ...] = ()
    notes: tuple[DataFinding, ...] = ()
    rejects: Path | None = local(default=None)
    extra: JsonObject = rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult(Record):
    """A data set written to the folder `out`: `written` of its `rows`, without the `rejected` ones;
    `counts` of findings by code, and the notes.
    """

    out: str
    rows: int
    written: int
    rejected: int
    counts: Mapping[str, int]
    notes: tuple[DataFinding, ...]
