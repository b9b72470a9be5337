"""The sections of a recipe, apart from `train` (`stages.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, model_validator

from .. import seams
from ..families import DEFAULT_WINDOW, LARGEST_WINDOW
from ..registry import Registry
from .fields import OneOf, RecipeSection, as_tuple


class Language(RecipeSection):
    """`language`: the language part and its context window."""

    part: str = Field(
        description=(
            "a model of a known language family, such as Phi-3.5, Phi-4-mini, SmolLM2, Qwen2.5 or"
            " Qwen3: folder or hub id, also with a revision: owner/name@revision"
        )
    )
    window: int = Field(
        DEFAULT_WINDOW,
        ge=64,
        le=LARGEST_WINDOW,
        description="tokens; Phi-3.5's position factors change past 4096",
    )


class Vision(RecipeSection):
    """`vision`: the vision part, its kind, and the layer whose features are used."""

    part: str = Field(
        description="a CLIP, SigLIP or DINOv2 model: folder or hub id, also with a revision"
    )
    encoder: Annotated[str, OneOf(seams.ENCODER_MODULES)] = Field(
        "clip", description="what kind of model the part is"
    )
    layer: int = Field(
        -2, le=-1, description="which hidden layer the projector reads, from the end"
    )
    size: int | None = Field(
        None,
        ge=1,
        description=(
            "pixels a side that images are resized to; if left out, what the part's"
            " preprocessor_config.json says; positions stored for another size are resized once"
        ),
    )


class Speech(RecipeSection):
    """`speech`: the speech part that transcribes voice input."""

    part: str = Field(description="a Whisper model: folder (transformers or CTranslate2) or hub id")


class _ProjectorKind(Protocol):
    """What a recipe asks of `model/projectors/base.py: ProjectorKind`."""

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        """Why `pool` and `nested` do not go with this kind; None if they do."""


_PROJECTORS: Registry[_ProjectorKind] = Registry("projector", "PROJECTOR", seams.PROJECTOR_MODULES)


class Projector(RecipeSection):
    """`projector`: how patch features become image tokens."""

    kind: Annotated[str, OneOf(seams.PROJECTOR_MODULES)] = Field(
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
        refusal = _PROJECTORS[self.kind].refusal(self.pool, self.nested)
        if refusal is not None:
            raise ValueError(refusal)
        return self


class DataSet(RecipeSection):
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


def _as_data_set(value: Any) -> Any:
    return {"path": value} if isinstance(value, (str, Path)) else value


DataFile = Annotated[DataSet, BeforeValidator(_as_data_set)]
DataFiles = Annotated[tuple[DataFile, ...], BeforeValidator(as_tuple)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(as_tuple)]


class Data(RecipeSection):
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


class Features(RecipeSection):
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


class Merge(RecipeSection):
    """`merge`: number format of the merged model, and the thresholds that it must pass."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of the merged model's weights"
    )
    samples: int = Field(256, ge=1, description="held-out conversations to compare on")
    max_delta_loss: float = Field(
        0.005, ge=0, description="the gate: loss merged minus loss with the adapter"
    )
    max_lost_accuracy: float = Field(
        0.005,
        ge=0,
        le=1,
        description=(
            "the gate: fall in accuracy on questions with short answers; rejected if its whole 95 %"
            " interval is beyond it"
        ),
    )
    max_lost_answers: float = Field(
        0.01,
        ge=0,
        le=1,
        description=(
            "the gate: share of those answers that changed from right to wrong; rejected if its"
            " whole 95 % interval is above it"
        ),
    )
    min_same_answers: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the gate, if above 0: share of equal answers; most that differ are no worse",
    )


class Evaluate(RecipeSection):
    """`evaluate`: batch size and length of answers."""

    batch_size: int = Field(32, ge=1, description="questions at once")
    max_new_tokens: int = Field(64, ge=1, description="tokens at which an answer is cut")
