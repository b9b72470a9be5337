"""`phisense compare`: a recipe beside variants of it, each walked from features to held-out accuracy by the same verbs.

comparisons/<recipe>/comparison.json    a row for each variant and number of tokens it serves
                     comparison.png     accuracy over tokens a picture, with 95 % intervals
features/ runs/ models/                 what the verbs wrote, as <recipe>-<number of the variant>

A variant whose model is there already, made by the same recipe, is not trained again.
"""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from . import artefact, console
from .errors import UsageError
from .recipe import Recipe, load_recipe

Verb = Callable[..., Any]
AS_IT_IS = "as it is"


def compare(source: str, changes: Sequence[str], tries: Sequence[str], *, limit: int | None, device: str, verb: Verb) -> dict[str, Any]:
    """Walks the recipe and each of `tries`, `key=value` changes with spaces between. Raises UsageError if there is nothing to judge by."""
    variants = {AS_IT_IS: tuple(changes), **{one: (*changes, *shlex.split(one)) for one in tries}}
    recipes = {label: load_recipe(source, its) for label, its in variants.items()}  # all are read before any is trained
    first = recipes[AS_IT_IS]
    if not first.data.held_out:
        raise UsageError("there is nothing to compare by", got="no held-out question", do="Set data.held_out in the recipe")
    rows: list[dict[str, Any]] = []
    for number, (label, recipe) in enumerate(recipes.items()):
        console.out.rule(f"{number + 1} of {len(recipes)}: {label}", align="left")
        name = f"{first.name}-{number}" if number else first.name
        its = (*variants[label], f"name={name}", f"features.folder={_store(recipe)}")
        rows += _walk(source, its, label, limit, device, verb)
    folder = first.root / "comparisons" / first.name
    folder.mkdir(parents=True, exist_ok=True)
    artefact.write_bytes(folder / "comparison.json", orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    artefact.write_bytes(folder / "comparison.png", plot(rows))
    return {"rows": rows, "comparison": str(folder / "comparison.json"), "plot": str(folder / "comparison.png")}


def _store(recipe: Recipe) -> Path:
    """Variants that see alike share their features."""
    made_by = orjson.dumps([recipe.vision.model_dump(mode="json"), recipe.features.dtype])
    return Path("features") / f"{recipe.name}-{hashlib.sha256(made_by).hexdigest()[:8]}"


def _walk(source: str, changes: Sequence[str], label: str, limit: int | None, device: str, verb: Verb) -> list[dict[str, Any]]:
    recipe = load_recipe(source, tuple(changes))
    sets = [word for change in changes for word in ("--set", change)]
    if not _made(recipe):
        verb("features", source, *sets, "--device", device)
        verb("train", source, *sets, "--device", device)
        verb("merge", recipe.run, "--device", device)
    trained = orjson.loads((recipe.run / "train.json").read_bytes())
    asked: list[object] = [word for file in recipe.data.held_out for word in ("--data", recipe.path(file))]
    asked += [word for folder in recipe.image_folders for word in ("--images", folder)]
    asked += ["--image", "real", "--device", device, *(["--limit", limit] if limit else [])]
    rows = []
    for tokens in _served(recipe.model):
        out = recipe.root / "comparisons" / load_recipe(source).name / f"{recipe.name}-{tokens}"
        accuracy = verb("evaluate", recipe.model, *asked, "--picture-tokens", tokens, "--out", out)["real"]["figures"]["accuracy"]
        rows.append({
            "variant": label, "tokens": tokens, "accuracy": accuracy, "trainable": trained["trainable"],
            "train_seconds": round(trained["seconds"], 1), "model": str(recipe.model),
        })  # fmt: skip
    return rows


def _made(recipe: Recipe) -> bool:
    """Whether the variant's model is whole, and its run was of this very recipe."""
    if not all((folder / artefact.MANIFEST).is_file() for folder in (recipe.run, recipe.model)):
        return False
    ran: Any = yaml.safe_load((recipe.run / "recipe.yaml").read_text(encoding="utf-8"))
    return bool(ran == recipe.model_dump(mode="json"))


def _served(model: Path) -> list[int]:
    """The numbers of tokens a picture may take."""
    from transformers import AutoConfig

    from .model.projectors import NESTED, picture_slots

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return [picture_slots(config, side) for side in getattr(config, NESTED, [1])]


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: one mark for each row, and a line through those of one variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label in dict.fromkeys(row["variant"] for row in rows):
        its = sorted((row for row in rows if row["variant"] == label), key=lambda row: row["tokens"])
        values = [row["accuracy"]["value"] for row in its]
        below = [row["accuracy"]["value"] - row["accuracy"]["low"] for row in its]
        above = [row["accuracy"]["high"] - row["accuracy"]["value"] for row in its]
        name = f"{label}, {its[0]['train_seconds']:.0f} s of training"
        axes.errorbar([row["tokens"] for row in its], values, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens a picture", ylabel="accuracy on held-out questions, 95 % interval")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
