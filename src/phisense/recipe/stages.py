"""`train`: the stages of training, LoRA, and what they have in common."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from .. import seams
from ..families import LARGEST_WINDOW
from .fields import OneOf, Pattern, RecipeSection, as_tuple
from .sections import DataFiles

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

#: Keys of `train` that do not change what is trained: a run may be resumed with others.
CHECKPOINT_KEYS = ("checkpoint_every", "keep_checkpoints", "shard")


class Lora(RecipeSection):
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
        None,
        description=(
            "regular expression that must match every matrix of each layer that the language"
            " family names (Phi-3: four fused ones, Llama's class and Qwen: seven), and nothing"
            " else; null: the family's own"
        ),
    )
    vision: bool = Field(
        False,
        description=(
            "the same rank in the vision tower, up to the layer that is read; needs features.dtype"
            " pixels"
        ),
    )


class Stage(RecipeSection):
    """One training stage: its objective, steps, batch sizes, learning rates and lengths."""

    objective: Annotated[str, OneOf(seams.OBJECTIVE_MODULES)] = Field(
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
        2048,
        ge=16,
        le=LARGEST_WINDOW,
        description="tokens; a longer conversation loses its last turns",
    )


class TrainEval(RecipeSection):
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


class Train(RecipeSection):
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
    shard: bool = Field(
        False,
        description=(
            "cut weights, gradients and optimizer up among the processes of a launcher (FSDP2), for"
            " models that one GPU does not hold; needs quantize: false"
        ),
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
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description=(
            "steps between two checkpoints; null: a quarter of the stage's steps, but at least 20"
            " and at most 500"
        ),
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="the newest checkpoints of a stage that stay while it runs"
    )
    report_to: Annotated[tuple[Integration, ...], BeforeValidator(as_tuple)] = Field(
        (), description="Trainer integrations, which must be installed, e.g. tensorboard"
    )

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.lora is None and self.quantize:
            raise ValueError(
                "full fine-tuning (lora: null) needs quantize: false, since 4-bit weights do not"
                " move"
            )
        if self.shard and self.quantize:
            raise ValueError(
                "train.shard needs quantize: false, since 4-bit weights stay whole on each GPU:"
                " their codes and scales cannot be cut into rows"
            )
        if self.shard and self.lora is not None and self.lora.vision:
            raise ValueError(
                "train.shard goes without train.lora.vision: a batch without images would leave the"
                " vision tower of its process out, and the others would wait for it"
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
