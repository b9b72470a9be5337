"""The verbs that read data: check, convert, show, features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, UsageError
from .common import Device, Json, Recipe, Set, app


class PictureDepth(StrEnum):
    decode = "decode"
    headers = "headers"
    skip = "skip"


Images = Annotated[
    list[Path] | None,
    typer.Option(help="A folder that picture names are relative to; may be repeated, the first that has a picture gives it."),
]
HeldOut = Annotated[list[Path] | None, typer.Option(help="Data that must not be trained on: its pictures are looked for. May be repeated.")]
Depth = Annotated[
    PictureDepth, typer.Option(help="How closely pictures are looked at: decode (all of each), headers (ten times as fast), or skip.")
]


@app.command()
def check(
    data: Annotated[
        Path, typer.Argument(help="A data set: JSON, JSONL, CSV, Parquet or a folder of pictures with metadata (docs/formats.md).")
    ],
    images: Images = None,
    held_out: HeldOut = None,
    pictures: Depth = PictureDepth.decode,
    recipe: Annotated[str | None, typer.Option(help="Also measure every conversation against this recipe's tokenizer and length.")] = None,
    rejects: Annotated[Path, typer.Option(help="Where rows that cannot be used are listed, a line for each reason.")] = Path(
        "rejects.jsonl"
    ),
    max_rejects: Annotated[int, typer.Option(min=0, help="How many rows may be unusable before the check fails.")] = 0,
    json: Json = False,
) -> dict[str, Any]:
    """Read a data set and name every defect: the row, its id, what is wrong and what to do. Exit code 1 if too many rows cannot be used."""
    from .. import console
    from ..conversations.convert import write_rejects

    checked = _checked(data, images, held_out, pictures, recipe)
    if checked.rejected:
        write_rejects(rejects, checked)
    result: dict[str, Any] = checked.as_dict()
    if json:
        console.print_json(result)
    else:
        _tell(checked, rejects)
    if len(checked.rejected) > max_rejects:
        allowed = f", and {max_rejects} may be" if max_rejects else ""
        raise DataError(
            f"{data} has {len(checked.rejected):,} rows of {checked.rows:,} that cannot be used{allowed}",
            do="Mend or drop them, or let phisense convert leave them out; training refuses them",
        )
    return result


@app.command()
def convert(
    data: Annotated[Path, typer.Argument(help="A data set of any shape that check reads.")],
    out: Annotated[Path, typer.Option(help="The folder to write: metadata.jsonl, images/ and rejects.jsonl.")],
    images: Images = None,
    held_out: HeldOut = None,
    pictures: Depth = PictureDepth.decode,
    max_rejects: Annotated[int | None, typer.Option(min=0, help="How many rows may be left out; any number, if not given.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Write a data set as the one shape that phisense, TRL and datasets.load_dataset read alike, with rows that cannot be used left out."""
    from .. import console
    from ..conversations.convert import convert as write

    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and no data set of phisense's", do="Name another folder with --out")
    checked = _checked(data, images, held_out, pictures, None)
    if max_rejects is not None and len(checked.rejected) > max_rejects:
        raise DataError(
            f"{data} has {len(checked.rejected):,} rows of {checked.rows:,} that cannot be used, so nothing was written",
            wanted=f"at most {max_rejects}",
            do="Look at them with phisense check, or raise --max-rejects",
        )
    with console.bars() as bar:
        counts = write(data, out, checked, images or [], progress=bar)
    if json:
        console.print_json({"out": str(out), **counts})
    else:
        console.out.print(
            f"{counts['written']:,} of {counts['rows']:,} rows -> {out}; {counts['rejected']:,} left out -> {out / 'rejects.jsonl'}"
        )
    return {"out": str(out), **counts}


def _checked(
    data: Path, images: list[Path] | None, held_out: list[Path] | None, pictures: PictureDepth, recipe: str | None
) -> Any:  # conversations.Checked, which is only imported when it is used
    from functools import partial

    from .. import console
    from ..conversations import check as look_through
    from ..vision.looking import look_at

    for folder in images or []:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", do="Name the folder of the pictures with --images")
    look = None if pictures is PictureDepth.skip else partial(look_at, decode=pictures is PictureDepth.decode)
    if held_out and look is None:
        raise UsageError("held-out pictures cannot be looked for with --pictures skip", do="Leave one of the two out")
    with console.bars() as bar:
        leaks = _held_out(held_out, images or []).among if held_out else None
        measure = _measure(recipe) if recipe is not None else None
        return look_through(data, images or [], look=look, measure=measure, leaks=leaks, progress=bar)


def _held_out(files: list[Path], images: list[Path]) -> Any:
    from ..conversations.read import read_rows
    from ..conversations.roots import Pictures
    from ..vision.leaks import HeldOut

    finder = Pictures(images)
    sources: dict[str, Path | bytes] = {}
    for file in files:
        for row in read_rows(file):
            for picture in row.pictures:
                at = picture.data if picture.data is not None else finder.find(picture.name)
                if at is not None:
                    sources.setdefault(picture.name, at)
    return HeldOut(sources.items())


def _measure(name: str) -> Any:
    from ..recipe import load_recipe
    from ..showing import length_faults

    return length_faults(load_recipe(name))


def _tell(checked: Any, rejects: Path, most: int = 20) -> None:
    """Counts, a line for each class of defect, the first of the defects themselves, and where all of them are."""
    from .. import console
    from ..conversations.defects import KINDS

    shapes = ", ".join(f"{count:,} {shape}" for shape, count in checked.shapes.most_common())
    console.out.print(f"{checked.kind}: {checked.rows:,} rows ({shapes})")
    console.out.print(
        f"{checked.good:,} good, {checked.turns:,} answers, {checked.pictures:,} pictures, {checked.without_picture:,} rows without one"
    )
    counts = checked.counts
    rows = [
        [code, f"{count:,}", "rejected" if KINDS[code].rejects else "used", f"{KINDS[code].about}. {KINDS[code].do}."]
        for code, count in sorted(counts.items(), key=lambda item: (not KINDS[item[0]].rejects, -item[1]))
    ]
    if rows:
        console.table("What was found", ["class", "times", "rows are", "what it is, and what to do"], rows)
    for finding in checked.rejects[:most]:
        console.out.print(str(finding), style="red", markup=False)
    if checked.rejected:
        console.out.print(f"{len(checked.rejects):,} defects in {len(checked.rejected):,} rows -> {rejects}")


@app.command()
def show(
    data: Annotated[Path, typer.Argument(help="A data set of any shape that check reads.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many conversations.")] = 3,
    recipe: Annotated[str, typer.Option(help="Whose tokenizer and picture slots to use.")] = "practice",
    json: Json = False,
) -> list[dict[str, Any]]:
    """Show conversations as the model reads them, supervised tokens in colour: what is not coloured teaches nothing."""
    from .. import console
    from ..recipe import load_recipe
    from ..showing import rendered_rows

    rows = rendered_rows(data, load_recipe(recipe), n)
    if json:
        console.print_json([row.as_dict() for row in rows])
    else:
        for row in rows:
            console.out.print(row.as_text())
    return [row.as_dict() for row in rows]


@app.command()
def features(
    recipe: Recipe,
    set_: Set = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what each format would cost for this data, and which to take.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Encode every picture that a recipe trains on or asks about once, into a store on disk. Interrupted, it goes on where it stopped.

    Under `accelerate launch` or `torchrun` the processes share the work, and the store is the same.
    """
    from .. import console
    from ..conversations import Pictures, read_conversations
    from ..recipe import load_recipe

    r = load_recipe(recipe, tuple(set_ or ()))
    sets = r.data_sets
    names = [name for one in sets for row in read_conversations(r.path(one.path)) for name in row.images]
    from ..model.arithmetic import choose
    from ..processes import this_process
    from ..training.watch import watched_questions
    from ..vision.encoders import Encoder
    from ..vision.store import encode_pictures
    from ..vision.store import plan as plan_store

    arithmetic = choose("features", device, asked=r.compute_dtype)
    encoder = Encoder(r.vision.part, r.vision.encoder, r.vision.layer, device=str(arithmetic.device), dtype=arithmetic.dtype)
    pictures = Pictures(r.image_folders)
    names += [q.image for q in watched_questions(r) if q.image is not None and pictures.find(q.image) is not None]
    processes = this_process()
    if plan:
        return _tell_plan(plan_store(encoder, names, pictures, r.root, batch=r.features.batch), json)
    with console.bars() as bar:
        facts = encode_pictures(
            r.store, encoder, names, pictures, dtype=r.features.dtype, batch=r.features.batch, shard=r.features.shard, progress=bar,
            processes=processes, computed_in=arithmetic.format,
        )  # fmt: skip
    if not processes.first:
        return facts
    result = {"store": str(r.store), **facts}
    if json:
        console.print_json(result)
    else:
        same = facts["pictures"] - facts["distinct"]
        repeated = f" ({same:,} of them the same as another)" if same else ""
        console.out.print(f"{facts['pictures']:,} pictures{repeated}, {facts['tokens']} tokens of width {facts['width']} each -> {r.store}")
    return result


def _tell_plan(planned: dict[str, Any], json: bool) -> dict[str, Any]:
    from .. import console

    if json:
        console.print_json(planned)
        return planned
    rows = [
        [one["format"], _size(one["bytes"]), _duration(one["encode_seconds"]), _duration(one["epoch_seconds"]), one["note"]]
        for one in planned["formats"]
    ]
    console.table(
        f"{planned['pictures']:,} pictures, {_size(planned['free_bytes'])} free",
        ["features.dtype", "disk", "to write", "an epoch reads", ""],
        rows,
    )
    console.out.print(f"Recommended: features.dtype={planned['recommended']}, {planned['why']}.")
    return planned


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
