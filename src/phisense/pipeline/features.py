"""Encode every image of a recipe once, into a feature store on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..conversations import ImageFinder, read_conversations
from ..distributed import current_process_group
from ..recipe import Recipe
from .progress import Notice, OnEvent, ignore
from .results import FeaturesPlan, FeaturesResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.arithmetic import Arithmetic
    from ..vision.encoders.encode import Encoder
    from ..vision.store.writing import ChooseFormat


def encode_features(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    device: str = "auto",
    on_event: OnEvent = ignore,
) -> FeaturesResult:
    """Encode the images that `recipe` uses for training and held-out questions.

    Images that are in the store already are not encoded again; an interrupted call resumes. With
    `overwrite`, a new store of these images alone replaces the old one when it is complete. Under
    `torchrun` or `accelerate launch` the processes share the work.

    Raises ArtifactError if the store is of another encoder or format, PartError for the encoder,
    ImageError for an image that cannot be read.
    """
    from ..distributed import current_process_group
    from ..vision.store import encode_images

    names = _trained_names(recipe)
    encoder, arithmetic, recipe = _open_encoder(recipe, device)
    pictures = ImageFinder(recipe.image_folders)
    processes = current_process_group()
    names += _held_out_names(recipe, pictures, on_event if processes.is_main else ignore)
    encoded = encode_images(
        recipe.store,
        encoder,
        names,
        pictures,
        dtype=recipe.features.dtype,
        batch=recipe.features.batch_size,
        shard=recipe.features.shard_size,
        on_event=on_event,
        processes=processes,
        computed_in=arithmetic.format,
        choose=_format_chooser(recipe, encoder, arithmetic, on_event),
        overwrite=overwrite,
        log=lambda text: on_event(Notice(text, warning=True)),
    )
    if processes.is_main and pictures.by_tail:
        name, path = next(iter(pictures.by_tail.items()))
        on_event(
            Notice(
                f"{len(pictures.by_tail):,} pictures were found by the end of their path alone,"
                f" {name} as {path} for one. Check that it is that picture.",
                warning=True,
            )
        )
    return encoded


def _format_chooser(
    recipe: Recipe, encoder: Encoder, arithmetic: Arithmetic, on_event: OnEvent
) -> ChooseFormat | None:
    """What decides the number format of a store: None if the recipe asks for one."""
    from ..model.device import supports_bfloat16
    from ..vision.encoders.number_format import FormatChoice, choose_encoding_format

    if recipe.compute_dtype != "auto":
        return None

    def choose(made_in: str | None, images: Sequence[Any]) -> str:
        if made_in is not None:
            found = FormatChoice(made_in, "the store was begun in it")
        elif arithmetic.device.type == "cpu" and supports_bfloat16(arithmetic.device):
            found = choose_encoding_format(encoder, images)
        else:
            found = FormatChoice(arithmetic.format, arithmetic.reason)
        on_event(Notice(f"encodes pictures in {found.name}: {found.reason}"))
        return found.name

    return choose


def plan_features(
    recipe: Recipe, *, device: str = "auto", on_event: OnEvent = ignore
) -> FeaturesPlan:
    """Estimate the cost of each format of the store for the images of `recipe`, measured on a
    sample; writes nothing.
    """
    from ..vision.store import plan_store

    names = _trained_names(recipe)
    encoder, _, recipe = _open_encoder(recipe, device)
    pictures = ImageFinder(recipe.image_folders)
    # one of several processes says it
    notify = on_event if current_process_group().is_main else ignore
    names += _held_out_names(recipe, pictures, notify)
    return plan_store(encoder, names, pictures, recipe.root, batch=recipe.features.batch_size)


def _trained_names(recipe: Recipe) -> list[str]:
    """The images of every training conversation, duplicates included."""
    return [
        name
        for one in recipe.data_sets
        for row in read_conversations(recipe.path(one.path))
        for name in row.images
    ]


def _held_out_names(recipe: Recipe, pictures: ImageFinder, on_event: OnEvent) -> list[str]:
    """The images of the held-out questions that training evaluates. Those that cannot be found are
    reported in a notice and left out.
    """
    from ..training.eval_callback import eval_questions

    asked = [q.image for q in eval_questions(recipe) if q.image is not None]
    lost = [name for name in dict.fromkeys(asked) if pictures.find(name) is None]
    if lost:
        on_event(
            Notice(
                f"{len(lost):,} pictures of held-out questions are in none of the folders of"
                f" data.images, or in several, the first {lost[0]}: training will not ask about"
                " them.",
                warning=True,
            )
        )
    return [name for name in asked if name not in lost]


def _open_encoder(recipe: Recipe, device: str) -> tuple[Encoder, Arithmetic, Recipe]:
    """The encoder on its device, and the recipe with the encoder's revision pinned."""
    from ..model.arithmetic import choose_arithmetic
    from ..model.provenance import pin_revisions
    from ..vision.encoders.encode import Encoder

    arithmetic = choose_arithmetic("features", device, compute_dtype=recipe.compute_dtype)
    recipe = pin_revisions(recipe, encoder_only=True)
    vision = recipe.vision
    encoder = Encoder(
        vision.part,
        vision.encoder,
        vision.layer,
        size=vision.size,
        device=str(arithmetic.device),
        dtype=arithmetic.dtype,
    )
    return encoder, arithmetic, recipe
