"""The whole recipe: its sections, what they must agree in, and the paths that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .fields import Name, RecipeSection
from .sections import Data, DataSet, Evaluate, Features, Language, Merge, Projector, Speech, Vision
from .stages import Train

#: Sections that say what is done after training: a run may be resumed with others.
AFTER_TRAINING = ("merge", "evaluate")


class Recipe(RecipeSection):
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
