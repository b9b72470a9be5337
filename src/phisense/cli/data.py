"""The verbs that read data: check, convert, show, features."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..units import format_bytes, format_seconds
from .common import DeviceName, Json, Overwrite, RecipeName, Set, VerbResult, app

if TYPE_CHECKING:
    from ..pipeline.results import FeaturesPlan


class PictureDepth(StrEnum):
    decode = "decode"
    headers = "headers"
    skip = "skip"


Images = Annotated[
    list[Path] | None,
    typer.Option(
        help=(
            "A folder that picture names are relative to; may be repeated, the first that has a"
            " picture gives it."
        )
    ),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(
        help="Data that must not be trained on: its pictures are looked for. May be repeated."
    ),
]
Depth = Annotated[
    PictureDepth,
    typer.Option(
        help=(
            "How closely pictures are looked at: decode (all of each), headers (ten times as fast),"
            " or skip."
        )
    ),
]


CheckedData = Annotated[
    Path,
    typer.Argument(
        help=(
            "A data set: JSON, JSONL, CSV, Parquet or a folder of pictures with metadata"
            " (docs/formats.md)."
        )
    ),
]
LengthRecipe = Annotated[
    str | None,
    typer.Option(
        help="Also measure every conversation against this recipe's tokenizer and length."
    ),
]
RejectsFile = Annotated[
    Path | None,
    typer.Option(
        help=(
            "Where rows that cannot be used are listed, a line for each reason; otherwise"
            " rejects.jsonl, or -2, -3 ..."
        )
    ),
]
OverwriteRejects = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier list that --rejects names.")
]
MaxRejected = Annotated[
    int, typer.Option(min=0, help="How many rows may be unusable before the check fails.")
]
AnyData = Annotated[Path, typer.Argument(help="A data set of any shape that check reads.")]
ConvertedFolder = Annotated[
    Path, typer.Option(help="The folder to write: metadata.jsonl, images/ and rejects.jsonl.")
]
MaxLeftOut = Annotated[
    int | None,
    typer.Option(min=0, help="How many rows may be left out; any number, if not given."),
]
Count = Annotated[int, typer.Option("-n", min=1, help="How many conversations.")]
TokenizerRecipe = Annotated[str, typer.Option(help="Whose tokenizer and picture slots to use.")]
OnlyPlan = Annotated[
    bool,
    typer.Option(
        "--plan", help="Only say what each format would cost for this data, and which to take."
    ),
]
OverwriteStore = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help=(
            "Replace the store that is there, when the new one is whole, whatever encoder or"
            " format made it."
        ),
    ),
]


@app.command()
def check(
    data: CheckedData,
    images: Images = None,
    held_out: HeldOut = None,
    pictures: Depth = PictureDepth.decode,
    recipe: LengthRecipe = None,
    rejects: RejectsFile = None,
    overwrite: OverwriteRejects = False,
    max_rejects: MaxRejected = 0,
    json: Json = False,
) -> VerbResult:
    """Read a data set and name every defect: the row, its id, what is wrong and what to do. Exit
    code 1 if too many rows cannot be used.
    """
    from .. import safe_replace
    from ..pipeline.check import check as run_check
    from ..pipeline.check import require_usable, write_rejects
    from .printing import print_check
    from .rendering import events, print_as_json

    with events() as on_event:
        checked = run_check(
            data,
            images=images or (),
            held_out=held_out or (),
            image_depth=pictures.value,
            recipe=recipe,
            rejects=rejects,
            overwrite=overwrite,
            on_event=on_event,
        )
    if rejects is None:
        checked = write_rejects(checked, safe_replace.unused_path(Path("rejects.jsonl")))
    if json:
        print_as_json(checked)
    else:
        print_check(checked)
    require_usable(checked, data, max_rejects=max_rejects)
    return checked


@app.command()
def convert(
    data: AnyData,
    out: ConvertedFolder,
    overwrite: Overwrite = False,
    images: Images = None,
    held_out: HeldOut = None,
    pictures: Depth = PictureDepth.decode,
    max_rejects: MaxLeftOut = None,
    json: Json = False,
) -> VerbResult:
    """Write a data set as the one shape that phisense, TRL and datasets.load_dataset read alike,
    with rows that cannot be used left out.
    """
    from ..pipeline.check import convert as run_conversion
    from .printing import print_conversion
    from .rendering import events, print_as_json

    with events() as on_event:
        converted = run_conversion(
            data,
            out,
            images=images or (),
            held_out=held_out or (),
            image_depth=pictures.value,
            max_rejects=max_rejects,
            overwrite=overwrite,
            on_event=on_event,
        )
    if json:
        print_as_json(converted)
    else:
        print_conversion(converted)
    return converted


@app.command()
def show(
    data: AnyData,
    n: Count = 3,
    recipe: TokenizerRecipe = "practice",
    json: Json = False,
) -> Sequence[VerbResult]:
    """Show conversations as the model reads them, supervised tokens in colour: what is not coloured
    teaches nothing.
    """
    from .. import console
    from ..recipe import load_recipe
    from ..showing import render_rows
    from .rendering import print_as_json

    rows = render_rows(data, load_recipe(recipe), n)
    if json:
        print_as_json(rows)
    else:
        for row in rows:
            console.out.print(row.as_text())
    return rows


@app.command()
def features(
    recipe: RecipeName,
    set_: Set = None,
    plan: OnlyPlan = False,
    overwrite: OverwriteStore = False,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Encode every picture that a recipe trains on or asks about once, into a store on disk.
    Interrupted, it goes on where it stopped.

    A store that is there is added to: what it holds is kept, and none of it is encoded again. Under
    `accelerate launch` or `torchrun` the processes share the work, and the store is the same.
    """
    from ..distributed import current_process_group
    from ..pipeline.features import encode_features, plan_features
    from ..recipe import load_recipe
    from .printing import print_features
    from .rendering import events, print_as_json

    r = load_recipe(recipe, tuple(set_ or ()))
    if plan:
        with events() as on_event:
            planned = plan_features(r, device=device, on_event=on_event)
        if json:
            print_as_json(planned)
        else:
            _print_plan(planned)
        return planned
    with events() as on_event:
        encoded = encode_features(r, overwrite=overwrite, device=device, on_event=on_event)
    if not current_process_group().is_main:
        return encoded
    if json:
        print_as_json(encoded)
    else:
        print_features(encoded)
    return encoded


def _print_plan(planned: FeaturesPlan) -> None:
    from .. import console

    rows = [
        [
            one.format,
            format_bytes(one.bytes),
            format_seconds(one.encode_seconds),
            format_seconds(one.epoch_seconds),
            one.note,
        ]
        for one in planned.formats
    ]
    console.print_table(
        f"{planned.images:,} pictures, {format_bytes(planned.free_bytes)} free",
        ["features.dtype", "disk", "to write", "an epoch reads", ""],
        rows,
    )
    console.out.print(f"Recommended: features.dtype={planned.recommended}, {planned.why}.")
