"""The verbs that read data: check, show, features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, UsageError
from .common import Device, Json, Recipe, Set, app


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder that picture names are relative to; without it pictures are not looked at.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Read a data set and name every defect: the row, its id, and what is wrong. Exit code 1 if there is one."""
    from .. import console
    from ..conversations import check as look
    from ..vision.pictures import picture_defect

    if images is not None and not images.is_dir():
        raise UsageError(f"there is no folder {images}", do="Name the folder of the pictures with --images")
    with console.bars() as bar:
        found = look(data, images, defects_of=picture_defect, progress=lambda done: bar("checking rows", done, None))
    result = found.as_dict()
    if json:
        console.print_json(result)
    else:
        counts = f"{found.rows:,} rows, {found.good:,} good, {found.turns:,} answers"
        console.out.print(f"{counts}, {len(found.pictures):,} pictures, {found.without_picture:,} rows without one")
        for defect in found.defects:
            called = f" (id {defect.id})" if defect.id else ""
            console.out.print(f"row {defect.row}{called}: {defect.what}", style="red", markup=False)
    if found.defects:
        raise DataError(
            f"{data} has {len(found.defects)} defects in {found.rows} rows", do="Mend or drop those rows; training refuses them"
        )
    return result


@app.command()
def show(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL.")],
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
def features(recipe: Recipe, set_: Set = None, device: Device = "auto", json: Json = False) -> dict[str, Any]:
    """Encode every picture of the recipe's data once, into a store on disk. Interrupted, it goes on where it stopped."""
    from .. import console
    from ..conversations import read_conversations
    from ..model.device import compute_dtype, pick_device
    from ..recipe import load_recipe
    from ..vision.encoders import Encoder
    from ..vision.store import encode_pictures

    r = load_recipe(recipe, tuple(set_ or ()))
    files = [*r.data.align, *r.data.instruct]
    names = [name for file in files for row in read_conversations(r.path(file)) for name in row.images]
    where = pick_device(device)
    dtype = compute_dtype(where) if where.type == "cuda" else None
    encoder = Encoder(r.vision.part, r.vision.encoder, r.vision.layer, device=str(where), **({"dtype": dtype} if dtype else {}))
    with console.bars() as bar:
        facts = encode_pictures(
            r.store, encoder, names, r.path(r.data.images), dtype=r.features.dtype, batch=r.features.batch, shard=r.features.shard,
            progress=lambda done, total: bar("encoding pictures", done, total),
        )  # fmt: skip
    result = {"store": str(r.store), **facts}
    if json:
        console.print_json(result)
    else:
        console.out.print(f"{facts['pictures']:,} pictures, {facts['tokens']} tokens of width {facts['width']} each -> {r.store}")
    return result
