"""The verbs to begin with: doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PhisenseError
from .common import Json, app, run_verb


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe, to look for its parts and plan its memory.")] = None, json: Json = False
) -> dict[str, Any]:
    """What this machine has: versions, device, attention, memory; and whether a recipe's parts and data can be found."""
    from .. import console
    from ..doctor import examine
    from ..recipe import load_recipe

    findings = examine(load_recipe(recipe) if recipe else None)
    if json:
        console.print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            mark, style = {"ok": ("✓", "green"), "note": ("·", "dim"), "missing": ("✗", "red")}[finding.state]
            console.out.print(f"[{style}]{mark}[/{style}] {finding.what:<22}", end=" ")
            console.out.print(finding.found, markup=False)
    if any(finding.state == "missing" for finding in findings):
        raise PhisenseError(
            "something is missing", got=", ".join(f.what for f in findings if f.state == "missing"), do="See the lines marked ✗"
        )
    return {"findings": [finding.as_dict() for finding in findings]}


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    with_app: Annotated[bool, typer.Option("--app/--no-app", help="Open the page at the end.")] = True,
    seed: Annotated[int, typer.Option(help="Of the scenes and of the training.")] = 0,
    scenes: Annotated[int, typer.Option(min=100, help="To train on: fewer are faster and teach less.")] = 2600,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
) -> dict[str, Any]:
    """The whole road in miniature, in minutes on two CPU cores: a small model learns to look, is merged, evaluated and talked to."""
    from ..practice.demo import walk

    return walk(out, seed=seed, scenes=scenes, app_port=port if with_app else None, verb=run_verb)
