"""The verbs to begin with: doctor, demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PartError, PhisenseError, UsageError
from ..units import format_seconds
from .common import Json, Overwrite, Set, VerbResult, app

if TYPE_CHECKING:
    from ..doctor import DoctorReport, Finding, Plan


PlannedRecipe = Annotated[
    str | None,
    typer.Argument(help="A recipe, to look for its parts and plan its memory and time."),
]
OtherGPU = Annotated[
    str | None,
    typer.Option(help="Plan for another GPU, e.g. RTX-4090; an unknown name lists them."),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(help="Plan for so much memory, e.g. 16GB; alone, on a GPU that size."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Plan for one of so many processes that share a model (train.shard); if left out, one"
        " for each GPU here.",
    ),
]
DemoFolder = Annotated[Path, typer.Option(help="Where everything is written.")]
OpenPage = Annotated[bool, typer.Option("--app/--no-app", help="Open the page at the end.")]
DemoSeed = Annotated[int, typer.Option(help="Of the scenes and of the training.")]
Scenes = Annotated[int, typer.Option(min=100, help="To train on: fewer are faster and teach less.")]
DemoPort = Annotated[int, typer.Option(min=0, max=65535)]


@app.command()
def doctor(
    recipe: PlannedRecipe = None,
    set_: Set = None,
    gpu: OtherGPU = None,
    device_memory: DeviceMemory = None,
    processes: Processes = None,
    json: Json = False,
) -> VerbResult:
    """What this machine has, whether a recipe's parts and data are there, and what memory and time
    each step will take.
    """
    from ..doctor import DoctorReport, examine, find_devices, make_plan
    from ..recipe import load_recipe
    from .rendering import print_as_json

    if recipe is None and (gpu or device_memory or processes or set_):
        raise UsageError(
            "there is nothing to plan",
            got="no recipe",
            wanted="a recipe",
            do="For example phisense doctor phi3.5-clip-l336",
        )
    asked = load_recipe(recipe, tuple(set_ or ())) if recipe else None
    planned_for = (
        find_devices(gpu, device_memory, compute_dtype=asked.compute_dtype) if asked else []
    )
    if processes is not None:
        planned_for = [replace(one, processes=processes) for one in planned_for]
    findings = examine(asked)
    unknown = None
    plans = []
    try:
        plans = [make_plan(asked, device) for device in planned_for] if asked else []
    except PartError as error:  # said after what was found
        unknown = str(error)
    report = DoctorReport(findings=tuple(findings), plans=tuple(plans), no_plan=unknown)
    if json:
        print_as_json(report)
    else:
        _print_report(report)
    if any(finding.state == "missing" for finding in findings):
        raise PhisenseError(
            "something is missing",
            got=", ".join(f.what for f in findings if f.state == "missing"),
            do="See the lines marked ✗",
        )
    return report


def _print_report(report: DoctorReport) -> None:
    from .. import console

    _print_findings(report.findings)
    for plan in report.plans:
        _print_plan(plan)
    if report.no_plan:
        console.out.print(f"No plan: {report.no_plan}")


def _print_findings(findings: Sequence[Finding]) -> None:
    from .. import console

    for finding in findings:
        mark, style = {"ok": ("✓", "green"), "note": ("·", "dim"), "missing": ("✗", "red")}[
            finding.state
        ]
        console.out.print(mark, style=style, end=" ")
        console.out.print(f"{finding.what:<22}", end=" ")
        console.out.print(finding.found)


def _print_plan(made: Plan) -> None:
    """A row for each step, then what its largest moment is made of, and what would make it fit."""
    from .. import console

    rows = []
    for step in made.steps:
        largest = sorted(step.peak.terms.items(), key=lambda term: -term[1])[:3]
        rows.append(
            [
                step.peak.step,
                f"{step.peak.total / 1e9:.2f}",
                "yes" if step.fits else "NO",
                (
                    format_seconds(step.seconds)
                    if step.seconds is not None
                    else f"{format_seconds(step.step_seconds)} a step"
                    if step.step_seconds
                    else ""
                ),
                step.peak.moment,
                ", ".join(f"{name} {size / 1e9:.2f}" for name, size in largest),
            ]
        )
    title = (
        f"Plan for {made.device.name}: {made.device.memory / 1e9:.0f} GB, {made.device.dtype},"
        f" {made.device.attention} attention"
    )
    console.print_table(title, ["step", "peak GB", "fits", "time", "when", "most of it"], rows)
    for note in (
        *made.notes,
        f"time: {made.device.basis}",
        *(f"{s.peak.step}: {s.lengths.basis}" for s in made.steps if s.lengths),
    ):
        console.out.print(f"· {note}", style="dim")
    for step in made.steps:
        if step.advice:
            console.out.print(f"{step.peak.step} does not fit: {step.advice}", style="yellow")


@app.command()
def demo(
    out: DemoFolder = Path("demo"),
    overwrite: Overwrite = False,
    with_app: OpenPage = True,
    seed: DemoSeed = 0,
    scenes: Scenes = 2700,
    port: DemoPort = 7860,
) -> VerbResult:
    """The whole road in miniature, in minutes on two CPU cores: a small model learns to look, is
    merged, evaluated and talked to.

    Interrupted, it goes on where it was when called again; walked, it shows its figures and opens
    the page.
    """
    from ..practice.demo import demo_recipe, run_demo
    from .printing import print_result
    from .rendering import events

    with events(print_result) as on_event:
        summary = run_demo(
            out,
            seed=seed,
            scenes=scenes,
            app_port=port if with_app else None,
            overwrite=overwrite,
            on_event=on_event,
        )
    if with_app:
        from .chat import app_

        recipe = demo_recipe(out, seed)
        app_(
            recipe.model,
            examples=out / "data" / "heldout.jsonl",
            images=recipe.image_folders[0],
            port=port,
        )
    return summary
