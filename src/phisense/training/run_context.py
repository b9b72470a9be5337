"""What all stages of a run share, and the model that they train.

`build_model` and `calibrate_projector` make the model, `open_store` opens its features, and
`FrozenWeights` holds the digests of what must stay as it is.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..conversations import ImageFinder, read_conversations
from ..conversations.common_answers import AnswerTable, count_training_answers
from ..distributed import ProcessGroup
from ..errors import TrainingError
from ..model import Phi3WithProjector, trainable
from ..model.arithmetic import Arithmetic
from ..model.calibrate import calibrate
from ..model.projector_use import ProjectorUse, projector_always_used
from ..model.provenance import PartDigests
from ..model.quantized import check_not_repacked, codes_digest, plain_digest, scales_digest
from ..model.sharded_language import load_in_shards
from ..model.sharding import projector_use, shard_root, whole
from ..parts import resolve_part
from ..pipeline.progress import OnEvent
from ..recipe import Recipe
from ..vision.encoders.encode import Encoder, encoder_facts
from ..vision.store import FeatureStore
from .eval_callback import IsCorrect, eval_questions

CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class RunContext:
    """A run: its recipe with pinned parts and their digests, its number format, its feature store,
    its processes, and where it reports; `is_correct` scores the answers to held-out questions, and
    `answers` are the commonest of its training data.
    """

    recipe: Recipe
    parts: PartDigests
    arithmetic: Arithmetic
    store: FeatureStore
    processes: ProcessGroup
    on_event: OnEvent
    is_correct: IsCorrect | None
    answers: AnswerTable | None = None

    @property
    def shards(self) -> bool:
        """Whether the processes share the model."""
        return self.recipe.train.shard and self.processes.world_size > 1


@dataclass(frozen=True)
class FrozenWeights:
    """Digests of the language part's frozen weights: of their 4-bit codes and scales, None without
    quantization, and of the others, None if they are trained.
    """

    codes: str | None
    scales: str | None
    plain: str | None

    @classmethod
    def of(cls, built: Phi3WithProjector, *, lora: bool) -> FrozenWeights:
        """The digests of a model; without `lora` its language part is trained, so it changes."""
        plain = plain_digest(built.model) if lora else None
        return cls(codes_digest(built.model), scales_digest(built.model), plain)

    def check(self, stage: str, built: Phi3WithProjector) -> None:
        """Raises TrainingError if the frozen weights of the language part changed since the run
        began.
        """
        found = FrozenWeights.of(built, lora=self.plain is not None)
        if found == self:
            return
        now = {"codes": found.codes, "scales": found.scales, "others": found.plain}
        raise TrainingError(
            f"the frozen weights changed in stage {stage}",
            got=", ".join(f"{name} {str(one)[:12]}" for name, one in now.items()),
            wanted=", ".join(str(one)[:12] for one in (self.codes, self.scales, self.plain)),
            do=(
                "Something trained or repacked what must stay as it is; please report it with"
                " phisense doctor's output"
            ),
        )


def open_store(recipe: Recipe, arithmetic: Arithmetic) -> FeatureStore:
    """The recipe's feature store; one of pixels with a live encoder."""
    vision, dtype = recipe.vision, recipe.features.dtype
    live = None
    if dtype == "pixels":
        live = Encoder(
            vision.part,
            vision.encoder,
            vision.layer,
            size=vision.size,
            device=str(arithmetic.device),
            dtype=arithmetic.dtype,
        )
    return FeatureStore(
        recipe.store,
        facts=encoder_facts(vision.part, vision.encoder, vision.layer, vision.size),
        dtype=dtype,
        live=live,
        images=ImageFinder(recipe.image_folders),
    )


def count_answers(recipe: Recipe) -> AnswerTable:
    """The commonest answers of what the recipe's stages train on, as a run records them."""
    sets = {one.path for stage in recipe.train.stages for one in recipe.data_of(stage)}
    rows = (row for path in sorted(sets) for row in read_conversations(recipe.path(path)))
    return AnswerTable.from_dict(count_training_answers(rows).to_dict())


def build_model(run: RunContext) -> Phi3WithProjector:
    """The model without a vision tower, or with the store's live encoder if that is trained; with
    the layers of the language part sharded if the recipe says so.
    """
    built = _assemble(run)
    if run.shards:
        trainable.freeze_all_but_projector(built)
        load_in_shards(built.model, resolve_part(run.recipe.language.part), run.arithmetic.device)
    return built


def _assemble(run: RunContext) -> Phi3WithProjector:
    """The model; to be sharded, its language part without weights."""
    recipe, how = run.recipe, run.arithmetic
    # trained weights are float32; autocast computes in the compute dtype
    dtype = torch.float32 if recipe.train.lora is None else how.dtype
    built = Phi3WithProjector.from_recipe(
        recipe,
        quantize=recipe.train.quantize,
        stored_features=True,
        device=str(how.device),
        dtype=dtype,
        outlined=run.shards,
    )
    built.model.set_attn_implementation({"text_config": how.attention})
    check_not_repacked(built.model, "training")
    if recipe.tunes_vision:
        assert run.store.live is not None
        built.model.model.vision_tower = run.store.live.model
    return built


def shard_if_asked(run: RunContext, built: Phi3WithProjector, model: Any) -> None:
    """Shard the rest of `model`, the one that a stage trains, if the recipe says so."""
    if run.shards:
        shard_root(model, built.device)


def unfreeze_language(run: RunContext, built: Phi3WithProjector) -> Any:
    """The model with a trainable language part, as `trainable.unfreeze_language` returns it.

    A sharded one is loaded again around its projector: what is sharded takes no adapter, and does
    not begin to be trained.
    """
    if not run.shards:
        return trainable.unfreeze_language(built, run.recipe)
    projector = trainable.snapshot(built.projector)
    built.model = None
    gc.collect()  # hooks and layers refer to one another
    with torch.random.fork_rng(devices=[]):  # the adapter begins with what the stage before left
        built.model = _assemble(run).model
    trainable.freeze_all_but_projector(built)
    built.projector.load_state_dict(projector)
    model = trainable.unfreeze_language(built, run.recipe)
    load_in_shards(built.model, resolve_part(run.recipe.language.part), built.device)
    shard_if_asked(run, built, model)
    return model


@contextmanager
def use_of_projector(run: RunContext, model: Any) -> Iterator[ProjectorUse | None]:
    """How batches without images use the projector of a model that is sharded, trained by several
    processes, or of which it alone is trained; None for any other.
    """
    own = {id(weight) for weight in ProjectorUse(model).weights}
    alone = all(id(p) in own for p in model.parameters() if p.requires_grad)
    if projector_use(model) is None and (alone or run.processes.world_size > 1):
        with projector_always_used(model) as use:
            yield use
    else:
        yield projector_use(model)


def calibrate_projector(run: RunContext, built: Phi3WithProjector) -> dict[str, float] | None:
    """Calibrate the fresh projector on the features of some training images, without those of the
    evaluation questions; returns the standard deviations of `calibrate`.

    A projector loaded from `start` is left as it is, and None returned.
    """
    recipe, store = run.recipe, run.store
    if recipe.start is not None:
        return None
    held_out = {question.image for question in eval_questions(recipe)}
    trained_on = {
        name
        for one in recipe.data_sets
        for row in read_conversations(recipe.path(one.path))
        for name in row.images
    }
    own = trained_on - held_out  # a store may hold images of other recipes, too
    names = [name for name in store.names if name in own] or store.names
    some = random.Random(recipe.seed).sample(names, min(len(names), CALIBRATION_IMAGES))
    features = torch.stack([store.features(name).float() for name in some]).to(built.device)
    return calibrate(built.projector, features, whole(built.model.get_input_embeddings().weight))
