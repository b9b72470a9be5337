"""A recipe: the whole configuration as one typed YAML file. Unknown keys, wrong types and wrong
values are rejected by name.

Parts (`language.part`, `vision.part`, `speech.part`) are local folders in hub layout, relative to
the recipe file if they begin with a dot, or ids on the Hugging Face hub. Data and outputs are
relative to `root`, and `root` to the current folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from . import safe_parsing, seams
from .errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"


#: No key needs a larger number, and larger ones overflow in libraries.
MAX_NUMBER = 2**31 - 1


def _check_pattern(pattern: str) -> str:
    safe_parsing.compile_safe_pattern(pattern)
    return pattern


#: A valid regular expression that matches in bounded time.
Pattern = Annotated[str, AfterValidator(_check_pattern)]


#: The integrations that transformers' Trainer can report to.
Integration = Literal[
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


class _Section(BaseModel):
    """Base class of the sections. Every number is finite and at most `MAX_NUMBER`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise ValueError(f"a number must lie within ±{MAX_NUMBER:,}")
        return value


class Language(_Section):
    """`language`: the language part and its context window."""

    part: str = Field(
        description=(
            "a Phi-3 or Phi-3.5 model: folder or hub id, also with a revision: owner/name@revision"
        )
    )
    window: int = Field(
        4096, ge=64, le=4096, description="tokens; Phi-3.5's position factors change past 4096"
    )


class Vision(_Section):
    """`vision`: the vision part, its kind, and the layer whose features are used."""

    part: str = Field(
        description="a CLIP, SigLIP or DINOv2 model: folder or hub id, also with a revision"
    )
    encoder: Literal["clip", "siglip", "dinov2"] = Field(
        "clip", description="what kind of model the part is"
    )
    layer: int = Field(
        -2, le=-1, description="which hidden layer the projector reads, from the end"
    )


class Speech(_Section):
    """`speech`: the speech part that transcribes voice input."""

    part: str = Field(description="a Whisper model: folder (transformers or CTranslate2) or hub id")


class Projector(_Section):
    """`projector`: how patch features become image tokens."""

    kind: Literal["linear", "mlp", "pixel_shuffle"] = Field(
        "mlp",
        description=(
            "pixel_shuffle joins patches as pool says and, unlike mlp with a pool, does not begin"
            " as their average"
        ),
    )
    pool: Literal[1, 2, 3] = Field(
        1, description="2: four neighbouring patches become one slot; 3: nine"
    )
    nested: tuple[Literal[1, 2, 3, 4, 6], ...] = Field(
        (),
        description=(
            "[1, 2, 4]: train at all these sides of averaged squares, so that one model serves"
            " every number of tokens"
        ),
    )

    @model_validator(mode="after")
    def _fits(self) -> Projector:
        if self.kind == "linear" and self.pool > 1:
            raise ValueError("a linear projector cannot pool: take kind mlp or pixel_shuffle")
        if self.kind == "pixel_shuffle" and self.pool == 1:
            raise ValueError("pixel_shuffle needs pool 2 or 3")
        if self.nested and (self.pool > 1 or 1 not in self.nested):
            raise ValueError(
                "nested goes with pool 1 and must hold 1, since that is what native consumers read"
            )
        return self


class DataSet(_Section):
    """A data set and its weight in the mixture."""

    path: Path = Field(description="a data set of any shape that phisense check reads")
    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description=(
            "how often each row is seen in an epoch: 0.5 draws half of them, 2 takes each twice"
        ),
    )


def _as_tuple(value: Any) -> Any:
    """Accept a single value for a list, as `--set data.align=a.json` gives it."""
    return (value,) if isinstance(value, (str, Path, dict)) else value


def _as_data_set(value: Any) -> Any:
    return {"path": value} if isinstance(value, (str, Path)) else value


DataFile = Annotated[DataSet, BeforeValidator(_as_data_set)]
DataFiles = Annotated[tuple[DataFile, ...], BeforeValidator(_as_tuple)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_tuple)]


def _check_name(value: Any) -> Any:
    """Reject names that are not a plain folder name: folders of this name are written and replaced,
    so it must not lead anywhere else.
    """
    if (
        not isinstance(value, str)
        or len(value) > 100
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value)
    ):
        raise ValueError(
            "a name begins with a letter or a digit, and has at most 100 of A-Z, a-z, 0-9, dot, -"
            " and _"
        )
    return value


Name = Annotated[str, BeforeValidator(_check_name)]


class Data(_Section):
    """`data`: image folders, and the data sets of the stages and of evaluation."""

    images: Paths = Field(
        description=(
            "folder that the picture names in the data are relative to, or several in the order"
            " they are looked into"
        )
    )
    align: DataFiles = Field((), description="captions: paths of data sets, or {path, weight}")
    instruct: DataFiles = Field(description="instructions: paths of data sets, or {path, weight}")
    held_out: Paths = Field(
        (),
        description=(
            "questions or conversations never trained on; the merge and the evaluation use them"
        ),
    )


class Features(_Section):
    """`features`: how encoded images are stored."""

    dtype: Literal["float32", "float16", "int8", "pixels"] = Field(
        "float16",
        description=(
            "how they are stored; pixels: not at all, resized pictures are kept and encoded in"
            " training"
        ),
    )
    folder: Path | None = Field(
        None, description="where they are stored, if not in features/<name>"
    )
    batch_size: int = Field(32, ge=1, description="pictures encoded at once")
    shard_size: int = Field(512, ge=1, description="pictures in a shard")


class Lora(_Section):
    """`train.lora`: rank, scaling and target modules of LoRA."""

    rank: int = Field(
        64,
        ge=1,
        description=(
            "of the two small matrices beside each large one: more learns more and takes more"
            " memory"
        ),
    )
    alpha: int = Field(128, ge=1, description="what they add is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of their input that is left out at random"
    )
    target_modules: Pattern = Field(
        r".*language_model.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
        description=(
            "regular expression that must match all four fused matrices of each layer, and nothing"
            " else"
        ),
    )
    vision: bool = Field(
        False,
        description=(
            "the same rank in the vision tower, up to the layer that is read; needs features.dtype"
            " pixels"
        ),
    )


def _check_objective(name: str) -> str:
    if name not in seams.OBJECTIVES:
        raise ValueError(f"a training objective is one of {', '.join(seams.OBJECTIVES)}")
    return name


class Stage(_Section):
    """One training stage: its objective, steps, batch sizes, learning rates and lengths."""

    objective: Annotated[str, AfterValidator(_check_objective)] = Field(
        "supervised",
        description="what is learned; supervised: the answers, by the next token's cross-entropy",
    )
    epochs: float = Field(1.0, gt=0, description="how often the stage's data is gone through")
    max_steps: int = Field(-1, ge=-1, description="-1: as many as the epochs have")
    batch_size: int = Field(
        128, ge=1, description="conversations in an optimizer step, of all processes together"
    )
    micro_batch_size: int = Field(
        8,
        ge=1,
        description=(
            "conversations at once, at most: the largest number that divides a process's share of"
            " the batch"
        ),
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="the highest, after the warm-up; it falls as a cosine"
    )
    projector_learning_rate: float | None = Field(
        None, gt=0, description="the projector's, if not the same"
    )
    projector_optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description=(
            "muon for its matrices: steps equally long in all directions, at some ten times AdamW's"
            " rate"
        ),
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0, description="how strongly weights are drawn to zero")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    max_length: int = Field(
        2048, ge=16, le=4096, description="tokens; a longer conversation loses its last turns"
    )


class TrainEval(_Section):
    """`train.eval`: evaluation while a run trains."""

    questions: int = Field(
        32,
        ge=0,
        description=(
            "held-out questions asked while it trains, spread evenly; 0: none are, nor at the end"
        ),
    )
    times: int = Field(4, ge=1, description="in a stage, the last at its end")
    final_questions: int = Field(
        128,
        ge=0,
        description=(
            "so many, if they are more, at the end of the last stage: the verdict whether it looks"
            " is about them"
        ),
    )


class FurtherStage(Stage):
    """A stage after *instruct*, with its own data."""

    data: DataFiles = Field(
        description="what this stage is trained on: paths of data sets, or {path, weight}"
    )


class Train(_Section):
    """`train`: the stages and their common settings."""

    align: Stage | None = Field(
        None, description="the first stage: the projector alone, on captions"
    )
    instruct: Stage = Field(description="the second: projector and LoRA, on instructions")
    further: dict[str, FurtherStage] = Field(
        {},
        description="stages after instruct, by name and in their order: projector and LoRA go on",
    )
    lora: Lora | None = Field(
        Lora(),
        description=(
            "null: full fine-tuning, every weight of the language part; needs quantize: false"
        ),
    )
    quantize: bool = Field(
        True, description="the frozen language part in NF4 with double quantisation (QLoRA)"
    )
    gradient_checkpointing: bool = Field(
        True, description="recompute activations in the backward pass to save memory"
    )
    share_pictures: bool = Field(
        True,
        description=(
            "a picture goes through the model once for all its conversations; the loss is the same"
        ),
    )
    bad_step: Literal["stop", "skip"] = Field(
        "stop",
        description=(
            "a step whose loss or gradient is not finite, or whose loss jumps, is never taken: stop"
            " there, or go on after it"
        ),
    )
    spike: float | None = Field(
        4.0,
        gt=0,
        description=(
            "a loss so far above the median of the last 50 steps has jumped; null: none has"
        ),
    )
    eval: TrainEval = Field(TrainEval(), description="held-out questions asked while it trains")
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    report_to: Annotated[tuple[Integration, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="Trainer integrations, which must be installed, e.g. tensorboard"
    )

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.lora is None and self.quantize:
            raise ValueError(
                "full fine-tuning (lora: null) needs quantize: false, since 4-bit weights do not"
                " move"
            )
        wrong = [
            name
            for name in self.further
            if name in ("align", "instruct") or not re.fullmatch(r"[a-z][a-z0-9_-]*", name)
        ]
        if wrong:
            raise ValueError(
                f"a further stage cannot be called {wrong[0]}: take small letters, and another name"
                " than align and instruct"
            )
        return self

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order in which they run."""
        return {
            **({"align": self.align} if self.align else {}),
            "instruct": self.instruct,
            **self.further,
        }


class Merge(_Section):
    """`merge`: number format of the merged model, and the thresholds that it must pass."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of the merged model's weights"
    )
    samples: int = Field(64, ge=1, description="held-out conversations to compare on")
    max_delta_loss: float = Field(
        0.002, ge=0, description="the gate: loss merged minus loss with the adapter"
    )
    min_same_answers: float = Field(
        0.995, ge=0, le=1, description="the gate: share of equal answers"
    )


class Evaluate(_Section):
    """`evaluate`: batch size and length of answers."""

    batch_size: int = Field(32, ge=1, description="questions at once")
    max_new_tokens: int = Field(64, ge=1, description="tokens at which an answer is cut")


class Recipe(_Section):
    """Everything that defines a model: parts, data, stages, merge and evaluation. Frozen;
    `load_recipe` reads one.
    """

    name: Name = Field(
        description="of the folders that are written: runs/<name>, models/<name>, features/<name>"
    )
    seed: int = Field(
        0, ge=0, description="of everything drawn at random; the same seed gives the same run"
    )
    root: Path = Field(Path("."), description="data and outputs are relative to it")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "the number format that features, training, evaluation and chat compute in; auto:"
            " bfloat16 where the device multiplies in it; training never computes in float16"
        ),
    )
    start: str | None = Field(
        None,
        description=(
            "a model folder, merged or imported, to go on training: language part, vision tower and"
            " projector are its own"
        ),
    )
    language: Language = Field(description="the part that reads and writes text")
    vision: Vision = Field(description="the part that looks at pictures")
    speech: Speech | None = Field(
        None, description="the part that hears; needed for questions by voice only"
    )
    projector: Projector = Field(
        Projector(),
        description=(
            "what carries pictures over to the language part: the thing that is trained first"
        ),
    )
    data: Data = Field(description="what is learned from, and what is kept from learning")
    features: Features = Field(Features(), description="how encoded pictures are stored")
    train: Train = Field(description="stages and their settings")
    merge: Merge = Field(
        Merge(), description="how the adapter becomes part of the model, and what may be lost"
    )
    evaluate: Evaluate = Field(Evaluate(), description="how held-out questions are asked")

    @model_validator(mode="before")
    @classmethod
    def _started(cls, raw: Any) -> Any:
        """With `start`, the parts may be omitted."""
        if not isinstance(raw, dict) or not isinstance(raw.get("start"), str):
            return raw
        given = {name: raw.get(name) or {} for name in ("language", "vision")}
        return {
            **raw,
            **{
                name: {"part": raw["start"], **section}
                for name, section in given.items()
                if isinstance(section, dict)
            },
        }

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        others = [
            f"{name}.part"
            for name in ("language", "vision")
            if self.start not in (None, getattr(self, name).part)
        ]
        if others:
            raise ValueError(
                f"start brings its own parts, so {others[0]} cannot be another: leave it out"
            )
        if self.tunes_vision and (self.features.dtype != "pixels" or self.projector.nested):
            raise ValueError(
                "train.lora.vision needs features.dtype: pixels and no projector.nested, since"
                " stored features do not move"
            )
        return self

    @property
    def tunes_vision(self) -> bool:
        """Whether the vision tower is trained, too."""
        return self.train.lora is not None and self.train.lora.vision

    def path(self, relative: Path) -> Path:
        """A data path, relative to `root`."""
        return self.root / relative

    def data_of(self, stage: str) -> tuple[DataSet, ...]:
        """The data sets of a stage."""
        known = {"align": self.data.align, "instruct": self.data.instruct}
        return known[stage] if stage in known else self.train.further[stage].data

    @property
    def data_sets(self) -> list[DataSet]:
        """The data sets of all stages, whether or not alignment is run."""
        return [
            *self.data.align,
            *self.data.instruct,
            *(one for stage in self.train.further.values() for one in stage.data),
        ]

    @property
    def image_folders(self) -> list[Path]:
        """Image folders, in the order in which they are searched."""
        return [self.path(folder) for folder in self.data.images]

    @property
    def store(self) -> Path:
        """Folder of this recipe's feature store."""
        return self.root / (self.features.folder or Path("features") / self.name)

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.root / "runs" / self.name

    @property
    def model(self) -> Path:
        """Folder of the merged model."""
        return self.root / "models" / self.name


def load_recipe(
    source: str | Path, changes: Sequence[str] = (), *, root: str | Path | None = None
) -> Recipe:
    """Read a recipe file, or a shipped recipe by name.

    `changes` are `--set` arguments, such as `train.instruct.epochs=2`; `root` replaces the recipe's
    own root folder. Raises RecipeError for a recipe that does not exist or has a wrong key or
    value.
    """
    path = _find(source)
    return _resolved(path, _read(path), changes, root)


def load_recorded_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a run recorded when it began, with `changes`. Keys that had other names then
    are read under those of today; such a file must not be edited, for the run's manifest names its
    content. Raises RecipeError as `load_recipe` does.
    """
    return _resolved(path, with_current_keys(_read(path)), changes, None)


def _read(path: Path) -> dict[str, Any]:
    raw = safe_parsing.read_yaml(path)
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path} is not a recipe", got=type(raw).__name__, wanted="a mapping of sections"
        )
    return raw


def _resolved(
    path: Path, raw: dict[str, Any], changes: Sequence[str], root: str | Path | None
) -> Recipe:
    for change in changes:
        _apply(raw, change)
    if root is not None:
        raw["root"] = str(root)
    if str(raw.get("start", "")).startswith("."):
        raw["start"] = str((path.parent / raw["start"]).resolve())
    for part in ("language", "vision", "speech"):
        section = raw.get(part)
        if isinstance(section, dict) and str(section.get("part", "")).startswith("."):
            section["part"] = str((path.parent / section["part"]).resolve())
    return parse_recipe(raw, name=str(path))


def parse_recipe(raw: dict[str, Any], *, name: str = "the recipe") -> Recipe:
    """Validate a mapping as a recipe; `name` is its name in messages.

    Raises RecipeError with the nearest key or the valid range.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, name) from error


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with phisense."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{Path(source).name.removesuffix('.yaml')}.yaml"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    raise RecipeError(
        f"there is no recipe {source}",
        wanted=f"a YAML file or one of {', '.join(shipped_recipes())}",
    )


def _apply(raw: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise RecipeError(
            "--set takes key=value", got=repr(change), wanted="for example train.instruct.epochs=2"
        )
    at = raw
    *sections, last = key.split(".")
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise RecipeError(
                f"--set {key}: {section} is a value, not a section",
                wanted="a key such as train.instruct.epochs",
            )
    before = at.get(last)
    at[last] = safe_parsing.parse_yaml(value, f"the value of --set {safe_parsing.truncate(key)}")
    # a resolved recipe names the parts inside `start`, so they change with it
    if key == "start" and isinstance(before, str):
        for half in ("language", "vision"):
            its = raw.get(half)
            if isinstance(its, dict) and its.get("part") == before:
                its["part"] = at[last]


def _explain(error: ValidationError, name: str) -> RecipeError:
    """The first validation error as one sentence: where, what, and the nearest key for a misspelled
    one.
    """
    first = error.errors()[0]
    where = safe_parsing.truncate(".".join(str(step) for step in first["loc"]))
    if first["type"] == "extra_forbidden":
        if new := _successor(first["loc"]):
            return RecipeError(f"{name}: {where} is not a key; it is now {new}", do="Rename it")
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(
            safe_parsing.truncate(str(first["loc"][-1])), known, n=1, cutoff=0.0
        )
        return RecipeError(
            f"{name} has an unknown key {where}",
            wanted=f"one of {', '.join(known)}",
            do=f"Did you mean {near[0]}?" if near else None,
        )
    if first["type"] == "missing":
        return RecipeError(f"{name} lacks the key {where}")
    said = first["msg"].removeprefix("Value error, ")
    # a whole section would not help
    got = None if isinstance(first["input"], dict) else safe_parsing.truncate(repr(first["input"]))
    return RecipeError(
        f"{name}: {f'{where} is wrong: ' if where else ''}{said[0].lower()}{said[1:]}", got=got
    )


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    return list(_section_at(loc).model_fields)


def _section_at(loc: tuple[int | str, ...]) -> type[_Section]:
    """The section that a location in a recipe belongs to."""
    section: type[_Section] = Recipe
    for step in loc:
        if step in section.model_fields:  # else a list index, or a name that the user gave
            section = next(_sections_in(section.model_fields[str(step)].annotation), section)
    return section


#: Renamed keys, by section. In a recipe they are rejected, and the message gives the new one; in
#: the record of an earlier run they are translated.
_RENAMED: dict[type[_Section], dict[str, str]] = {
    Features: {"batch": "batch_size", "shard": "shard_size"},
    Lora: {"targets": "target_modules"},
    Stage: {
        "batch": "batch_size",
        "micro_batch": "micro_batch_size",
        "warm_up": "warmup_ratio",
        "clip": "max_grad_norm",
        "length": "max_length",
    },
    Train: {
        "quantise": "quantize",
        "checkpointing": "gradient_checkpointing",
        "watch": "eval",
    },
    Merge: {
        "most_delta_loss": "max_delta_loss",
        "least_same_answers": "min_same_answers",
    },
    Evaluate: {"batch": "batch_size"},
}


def _successor(loc: tuple[int | str, ...]) -> str | None:
    """The full new name of a renamed key."""
    section = _section_at(loc[:-1])
    for owner, table in _RENAMED.items():
        if issubclass(section, owner) and loc[-1] in table:
            return safe_parsing.truncate(".".join(map(str, (*loc[:-1], table[str(loc[-1])]))))
    return None


def with_current_keys(raw: Any, section: type[_Section] | None = None) -> Any:
    """A recipe as it was recorded, with its keys under the names of today."""
    if not isinstance(raw, dict):
        return raw
    section = section or Recipe
    renamed = {
        old: new
        for owner, table in _RENAMED.items()
        if issubclass(section, owner)
        for old, new in table.items()
    }
    made = {}
    for key, value in raw.items():
        name = renamed.get(key, key)
        if name in section.model_fields:
            inner = next(_sections_in(section.model_fields[name].annotation), None)
            if inner is not None and isinstance(value, dict):
                # a mapping of names to sections has sections one level deeper
                named = getattr(section.model_fields[name].annotation, "__origin__", None) is dict
                value = (
                    {one: with_current_keys(its, inner) for one, its in value.items()}
                    if named
                    else with_current_keys(value, inner)
                )
        made[name] = value
    return made


def _sections_in(annotation: Any) -> Iterator[type[_Section]]:
    """The section types that a key may hold: directly, in a union, a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections_in(inner)
