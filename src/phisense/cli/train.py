"""The verbs that make a model: train, runs, merge, compare, tune."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .common import DeviceName, Json, Overwrite, RecipeName, Set, VerbResult, app

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")]
OverwriteRun = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help=(
            "Replace a run of this name; a finished one stays, as NAME~, until the new one is"
            " whole."
        ),
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Resume though recipe, data or features are others."),
]
Root = Annotated[Path, typer.Argument(help="The folder that holds runs/.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, as phisense train writes it.")]
MergedFolder = Annotated[
    Path | None,
    typer.Option(help="The model folder to write; otherwise models/NAME beside runs."),
]


class NumberFormat(StrEnum):
    """Number formats of a merged model's weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


MergeDtype = Annotated[
    NumberFormat | None,
    typer.Option(help="Number format of the merged weights; otherwise the recipe's merge.dtype."),
]
Variants = Annotated[
    list[str],
    typer.Option(
        "--try",
        metavar="CHANGES",
        help='A variant, e.g. "projector.kind=mlp projector.pool=2". Repeatable.',
    ),
]
HeldOutLimit = Annotated[
    int | None, typer.Option(min=1, help="Only so many held-out questions, evenly spaced.")
]
Ranges = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=RANGE",
        help=(
            "low..high or one,two,three; repeatable. If not given: rates, warm-up, LoRA, tokens"
            " per picture."
        ),
    ),
]
Trials = Annotated[
    int, typer.Option(min=1, help="In all, those of other workers and earlier calls included.")
]
Hours = Annotated[float | None, typer.Option(min=0.0, help="Begin no further trial after so long.")]
JudgedQuestions = Annotated[
    int, typer.Option(min=1, help="Held-out questions by which a trial is judged.")
]
Storage = Annotated[
    str | None,
    typer.Option(help="A database URL that several workers share; otherwise SQLite in the study."),
]


@app.command()
def train(
    recipe: RecipeName,
    set_: Set = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    accept_changes: AcceptChanges = False,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Train in stages: align (projector), instruct (projector and LoRA, or the whole language
    part), further ones. Writes a run folder, and says whether the model looks at its pictures.

    Under `accelerate launch` or `torchrun` the processes share each batch, and the losses are those
    of one process.
    """
    from ..recipe import load_recipe

    r = load_recipe(recipe, tuple(set_ or ()))
    from ..distributed import current_process_group
    from ..pipeline.train import train as run_training
    from .printing import print_training, print_verdict
    from .rendering import events, print_as_json

    with events() as on_event:
        trained = run_training(
            r,
            resume=resume,
            overwrite=overwrite,
            accept_changes=accept_changes,
            device=device,
            on_event=on_event,
        )
    if not current_process_group().is_main:
        return trained
    if json:
        print_verdict(trained.verdict, quiet=True)
        print_as_json(trained)
    else:
        print_training(trained)
    return trained


@app.command()
def runs(
    root: Root = Path("."),
    json: Json = False,
) -> Sequence[VerbResult]:
    """The runs there are: finished, running, or stopped at a step; and whether train --resume can
    go on.
    """
    from .. import console
    from ..training.run_folder import list_runs
    from .rendering import print_as_json

    found = list_runs(root)
    if json:
        print_as_json(found)
    else:
        rows = [
            [
                run.name,
                f"{run.state}, resumable" if run.resumable else run.state,
                f"{run.stage} {run.step} of {run.steps}" if run.stage else "",
                "" if run.loss is None else f"{run.loss:.3f}",
            ]
            for run in found
        ]
        console.print_table(f"runs in {root}", ["run", "state", "last logged step", "loss"], rows)
    return found


@app.command()
def merge(
    run: RunFolder,
    set_: Set = None,
    dtype: MergeDtype = None,
    out: MergedFolder = None,
    overwrite: Overwrite = False,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Merge the adapter into the base, measure what that did, and write a native model folder;
    refuse a lossy merge.

    The parts must be those that the run was trained with, by their content; --set
    language.part=FOLDER says where they lie now. A merge that is refused leaves its report in the
    run's folder, and says with which --dtype or --set merge... it would not be.
    """
    from ..pipeline.merge import merge as run_merge
    from .printing import print_merge, print_result
    from .rendering import events, print_as_json

    changes = [*(set_ or ()), *([] if dtype is None else [f"merge.dtype={dtype.value}"])]
    with events(None if json else print_result) as on_event:  # of a refused merge: its table
        merged = run_merge(
            run,
            changes=changes,
            out=out,
            overwrite=overwrite,
            device=device,
            on_event=on_event,
        )
    if json:
        print_as_json(merged)
    else:
        print_merge(merged)
    return merged


@app.command()
def compare(
    recipe: RecipeName,
    try_: Variants,
    set_: Set = None,
    limit: HeldOutLimit = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Walk a recipe and variants of it from features to held-out accuracy: one table and one plot.

    What is there already is not made again, so more variants can be added later.
    """
    from .. import console
    from ..comparing import compare as run_comparison
    from .printing import print_result, print_warnings
    from .rendering import events, print_as_json

    with events(print_warnings if json else print_result, headings=not json) as on_event:
        found = run_comparison(
            recipe, set_ or (), try_, limit=limit, device=device, on_event=on_event
        )
    if json:
        print_as_json(found)
    else:
        rows = [
            [
                row.variant,
                f"{row.tokens}",
                (f"{row.accuracy.value:.3f} [{row.accuracy.low:.3f}, {row.accuracy.high:.3f}]"),
                f"{row.trainable:,}",
                f"{row.train_seconds:.0f}",
            ]
            for row in found.rows
        ]
        console.print_table(
            "held-out accuracy",
            ["variant", "tokens", "accuracy [95 %]", "trained parameters", "training s"],
            rows,
        )
        console.out.print(f"plot -> {found.plot}")
    return found


@app.command()
def tune(
    recipe: RecipeName,
    vary: Ranges = None,
    set_: Set = None,
    trials: Trials = 20,
    hours: Hours = None,
    questions: JudgedQuestions = 200,
    storage: Storage = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Look for better settings with Optuna: train, judge by held-out questions, prune what falls
    behind.

    The recipe as it is goes first. What was begun is gone on with; start the command on several
    machines to share a study.
    """
    from .. import console
    from ..recipe import load_recipe
    from ..tuning import Tuning, default_ranges, parse_range
    from .printing import print_result, print_warnings
    from .rendering import events, print_as_json

    changes = tuple(set_ or ())
    ranges = (
        [parse_range(one) for one in vary] if vary else default_ranges(load_recipe(recipe, changes))
    )
    with events(print_warnings if json else print_result, headings=not json) as on_event:
        found = Tuning(
            recipe, changes, tuple(ranges), trials, hours, questions, storage, device, on_event
        )()
    if json:
        print_as_json(found)
    else:
        settings = [
            [key, f"{value:.4g}" if isinstance(value, float) else str(value)]
            for key, value in found.best.settings.items()
        ]
        console.print_table(
            f"trial {found.best.number}: {found.best.value:.3f} of held-out questions right",
            ["setting", "value"],
            settings,
        )
        console.out.print(
            f"train it with: phisense train {found.recipe}\nreport -> {found.report}",
            soft_wrap=True,
        )
    return found
