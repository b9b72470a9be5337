"""`phisense compare`: run a recipe and variants of it through the pipeline, from image features to
held-out accuracy.

comparisons/<recipe>/comparison.json    one row per variant and number of image tokens it supports
                     comparison.png     accuracy against image tokens, with 95 % intervals
                     <variant>-<tokens>/ the evaluation report of each row
features/ runs/ models/                 outputs of the pipeline steps; a variant is named
                                        <recipe>-<digest of its settings>

Existing outputs of the same recipe are reused and interrupted steps are resumed. Outputs of another
recipe are rejected before anything is written.
"""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import orjson

from . import artifacts, safe_replace
from .errors import PhisenseError, UsageError
from .pipeline.features import encode_features
from .pipeline.progress import Finished, OnEvent, Section, ignore
from .pipeline.results import CompareResult, VariantResult
from .pipeline.reuse import (
    check_unclaimed,
    ensure_evaluated,
    ensure_merged,
    ensure_trained,
    is_complete,
)
from .recipe import (
    Recipe,
    load_recipe,
)

BASELINE = "as it is"


def compare(
    source: str,
    changes: Sequence[str],
    trials: Sequence[str],
    *,
    limit: int | None = None,
    device: str = "auto",
    on_event: OnEvent = ignore,
) -> CompareResult:
    """Train and evaluate the recipe `source` with `changes`, and one variant for each of `trials`.

    Each trial is a string of further `key=value` changes separated by spaces. `limit` is the number
    of held-out questions to evaluate.

    Raises UsageError if the recipe has no held-out questions. Errors of a variant that could not be
    trained are raised before anything is written.
    """
    variants = {
        BASELINE: tuple(changes),
        **{one: (*changes, *_split_changes(one)) for one in trials},
    }
    # all recipes are read before any is trained, so that an invalid one fails early
    recipes = {label: load_recipe(source, its) for label, its in variants.items()}
    first = recipes[BASELINE]
    if not first.data.held_out:
        raise UsageError(
            "there is nothing to compare by",
            got="no held-out question",
            do="Set data.held_out in the recipe",
        )
    walks = {
        label: (
            *variants[label],
            f"name={_name(first, recipe)}",
            f"features.folder={_store(recipe)}",
        )
        for label, recipe in recipes.items()
    }
    for its in walks.values():
        check_unclaimed(load_recipe(source, its))
    _preflight({label: load_recipe(source, its) for label, its in walks.items()})
    # every variant is encoded before any is trained, so an unreadable image fails within minutes
    for its in walks.values():
        if not is_complete(load_recipe(source, its).run, "run"):
            encoded = encode_features(load_recipe(source, its), device=device, on_event=on_event)
            on_event(Finished(encoded))
    folder = first.root / "comparisons" / first.name
    rows: list[VariantResult] = []
    for number, (label, its) in enumerate(walks.items(), 1):
        on_event(Section(f"{number} of {len(walks)}: {label}"))
        rows += _variant(load_recipe(source, its), label, folder, limit, device, on_event)
    table, picture = _files(folder, rows)
    if not table.exists():
        artifacts.write_bytes(table, _json(rows))
        artifacts.write_bytes(picture, plot_accuracy(rows))
    return CompareResult(rows=tuple(rows), comparison=str(table), plot=str(picture))


def _preflight(recipes: dict[str, Recipe]) -> None:
    """Check that every variant can be trained, merged and evaluated, and name the one that cannot.

    Steps that are already complete are not checked again. Variants whose data renders to the same
    tokens are read once.
    """
    from .training.preflight import RowCounts, check_probes, check_variant

    known: RowCounts = {}
    for label, recipe in recipes.items():
        try:
            if not is_complete(recipe.run, "run"):
                check_variant(recipe, cache=known)
            elif not is_complete(recipe.model, "model folder"):
                check_probes(recipe)
        except PhisenseError as error:
            raise type(error)(f"{label}: {error}") from error


def _json(rows: Sequence[VariantResult]) -> bytes:
    return orjson.dumps([row.to_dict() for row in rows], option=orjson.OPT_INDENT_2)


def _files(folder: Path, rows: Sequence[VariantResult]) -> tuple[Path, Path]:
    """Paths of the table and its plot: existing files with the same rows, else new ones. An earlier
    table with other rows is kept.
    """
    for table in sorted(folder.glob("comparison*.json")):
        if table.read_bytes() == _json(rows) and table.with_suffix(".png").is_file():
            return table, table.with_suffix(".png")
    table = safe_replace.unused_path(folder / "comparison.json")
    return table, table.with_suffix(".png")


def _name(first: Recipe, recipe: Recipe) -> str:
    """The unchanged recipe keeps its name; a variant's name contains a digest of its settings, so
    that two variants never share an output folder.
    """
    if recipe == first:
        return first.name
    asked = orjson.dumps(recipe.model_dump(mode="json", exclude={"root"}))
    return f"{first.name}-{hashlib.sha256(asked).hexdigest()[:8]}"


def _store(recipe: Recipe) -> Path:
    """Feature store folder, shared by variants with the same vision settings and feature dtype."""
    vision = recipe.vision.model_dump(mode="json", exclude_none=True)
    made_by = orjson.dumps([vision, recipe.features.dtype])
    return Path("features") / f"{recipe.name}-{hashlib.sha256(made_by).hexdigest()[:8]}"


def _variant(
    recipe: Recipe,
    label: str,
    folder: Path,
    limit: int | None,
    device: str,
    on_event: OnEvent,
) -> list[VariantResult]:
    """One row for each number of image tokens that the variant supports."""
    trained = ensure_trained(recipe, device, on_event)
    ensure_merged(recipe, device, on_event)
    rows = []
    for tokens in _image_token_counts(recipe.model):
        report = ensure_evaluated(
            recipe.model,
            [recipe.path(file) for file in recipe.data.held_out],
            recipe.image_folders,
            out=folder / f"{recipe.name}-{tokens}{f'-of-{limit}' if limit else ''}",
            conditions=("real",),
            limit=limit,
            picture_tokens=tokens,
            device=device,
            on_event=on_event,
        )
        rows.append(
            VariantResult(
                variant=label,
                tokens=tokens,
                accuracy=report.real.accuracy,
                trainable=trained.trainable,
                train_seconds=round(trained.seconds, 1),
                model=str(recipe.model),
            )
        )
    return rows


def _split_changes(changes: str) -> list[str]:
    try:
        return shlex.split(changes)
    except ValueError as error:
        raise UsageError(
            "--try takes changes with spaces between", got=f"{changes!r}, {error}"
        ) from error


def _image_token_counts(model: Path) -> list[int]:
    """The numbers of image tokens that the model supports."""
    from .model.folder import open_model_config
    from .model.projectors.image_tokens import image_token_sides

    config = open_model_config(model)
    return list(image_token_sides(config))


def plot_accuracy(rows: Sequence[VariantResult]) -> bytes:
    """PNG plot: one point for each row, one line for each variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label in dict.fromkeys(row.variant for row in rows):
        its = sorted((row for row in rows if row.variant == label), key=lambda row: row.tokens)
        values = [row.accuracy.value for row in its]
        below = [row.accuracy.value - row.accuracy.low for row in its]
        above = [row.accuracy.high - row.accuracy.value for row in its]
        name = f"{label}, {its[0].train_seconds:.0f} s of training"
        axes.errorbar(
            [row.tokens for row in its],
            values,
            yerr=[below, above],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens a picture", ylabel="accuracy on held-out questions, 95 % interval")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
