"""The verbs that make a model: train, runs, merge, compare, tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Bars
from .common import Device, Json, Recipe, Set, app, run_verb


@app.command()
def train(
    recipe: Recipe,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Resume though recipe, data or features are others.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Train in stages: align (projector), instruct (projector and LoRA, or the whole language part), further ones. Writes a run folder,
    and says whether the model looks at its pictures.

    Under `accelerate launch` or `torchrun` the processes share each batch, and the losses are those of one process.
    """
    from ..recipe import load_recipe

    r = load_recipe(recipe, tuple(set_ or ()))
    from .. import console
    from ..evaluation.answers import is_right
    from ..model.arithmetic import choose
    from ..training import Training

    arithmetic = choose("train", device, asked=r.compute_dtype)
    with console.bars() as bar:
        training = Training(r, lambda row: _show(row, bar), resume=resume, accept_changes=accept_changes, device=device, judge=is_right)
        if training.processes.first:
            told = f"computes in {arithmetic.format}, since {arithmetic.reason}; attention {arithmetic.attention}"
            console.err.print(f"on {arithmetic.device.type}: {told}", highlight=False)
        facts = training()
    if not training.processes.first:
        return facts
    result = {"run": str(r.run), **facts}
    _tell_whether_it_looks(facts["looks"], quiet=json)
    if json:
        console.print_json(result)
    else:
        what = "the language part" if r.train.lora is None else f"{len(facts['modules'])} LoRA modules"
        console.out.print(f"{facts['trainable']:,} parameters trained, as the shapes say, in {what} and the projector")
        console.out.print(f"the projector moved by {facts['projector_change']:.1%}")
        console.out.print(f"run -> {r.run} (loss.png, metrics.jsonl, train.json)")
    return result


def _tell_whether_it_looks(looks: dict[str, Any], *, quiet: bool) -> None:
    """The verdict, among the results if it is good and unless `quiet`, else as a warning that cannot be missed."""
    from .. import console
    from ..training.verdict import sentence

    if looks["verdict"] == "looks":
        if not quiet:
            console.out.print(sentence(looks), style="green")
    elif looks["verdict"] == "blind":
        console.warn("IT DOES NOT LOOK", sentence(looks))
    else:
        console.warn("NOBODY KNOWS WHETHER IT LOOKS", sentence(looks), style="yellow")


def _show(row: dict[str, Any], bar: Bars) -> None:
    """One line of training: progress, or what is worth a line of its own."""
    from .. import console

    if "skipped" in row:
        console.err.print(f"{row['stage']} {row['step']}: {row['why']}; metrics.jsonl names the conversations", style="yellow")
    elif "answers" in row:
        without = "" if row["blind"] is None else f", {row['blind']:.0%} without the picture"
        console.err.print(f"{row['stage']} {row['step']}: {row['held_out']:.0%} of {row['questions']} held-out questions right{without}")
        for one in row["answers"]:
            console.err.print(f"  {one['question']} -> {one['said']} (right: {one['right']})", markup=False, soft_wrap=True)
    else:
        told = [f"loss {row['loss']:.3f}", f"lr {row['learning_rate']:.1e}"] if "loss" in row else []
        told += [f"{row['tokens_per_second']:,.0f} tokens/s"] + ([f"{row['memory'] / 1e9:.1f} GB"] if row["memory"] else [])
        bar(row["stage"], row["step"], row["steps"], "  ".join(told))


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(help="The folder that holds runs/.")] = Path("."),
    json: Json = False,
) -> list[dict[str, Any]]:
    """The runs there are: finished, running, or stopped at a step; and whether train --resume can go on."""
    from .. import console
    from ..training.runs import runs as find_runs

    found = [run.as_dict() for run in find_runs(root)]
    if json:
        console.print_json(found)
    else:
        rows = []
        for run in found:
            at = f"{run['stage']} {run['step']} of {run['steps']}" if run["stage"] else ""
            state = f"{run['state']}, resumable" if run["resumable"] else str(run["state"])
            rows.append([str(run["name"]), state, at, "" if run["loss"] is None else f"{run['loss']:.3f}"])
        console.table(f"runs in {root}", ["run", "state", "last logged step", "loss"], rows)
    return found


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run folder, as phisense train writes it.")],
    out: Annotated[Path | None, typer.Option(help="The model folder to write; otherwise models/NAME beside runs.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Merge the adapter into the base, measure what that did, and write a native model folder; refuse a lossy merge."""
    from .. import artefact, console

    artefact.read_manifest(run, kind="run", verify=False)
    from ..merging import merge as merge_run

    with console.bars() as bar:
        folder, report = merge_run(
            run, out=out, device=device, progress=lambda what, done, total: bar("merging and measuring", done, total, what)
        )
    result = {"model": str(folder), **report}
    if json:
        console.print_json(result)
    else:
        rows = [["adapter, unmerged (reference)", f"{report['reference_loss']:.5f}", "", ""]]
        for key in (key for key in ("merged", "on_original", "back_to_nf4", "shuffled") if key in report):
            m = report[key]
            rows.append([key.replace("_", " "), f"{m['loss']:.5f}", f"{m['delta_loss']:+.5f}", f"{m['same_answers']:.1%}"])
        console.table(f"{report['probes']} held-out questions", ["model", "loss", "difference", "same answers"], rows)
        console.out.print(f"projector changed by {report['projector_change']}; model -> {folder}")
    return result


@app.command()
def compare(
    recipe: Recipe,
    try_: Annotated[
        list[str], typer.Option("--try", metavar="CHANGES", help='A variant, e.g. "projector.kind=mlp projector.pool=2". Repeatable.')
    ],
    set_: Set = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many held-out questions, evenly spaced.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Walk a recipe and variants of it from features to held-out accuracy: one table and one plot.

    What is there already is not made again, so more variants can be added later.
    """
    from .. import console
    from ..comparing import compare as run_comparison

    result = run_comparison(recipe, set_ or (), try_, limit=limit, device=device, verb=run_verb)
    if json:
        console.print_json(result)
    else:
        rows = [
            [
                row["variant"],
                f"{row['tokens']}",
                f"{row['accuracy']['value']:.3f} [{row['accuracy']['low']:.3f}, {row['accuracy']['high']:.3f}]",
                f"{row['trainable']:,}",
                f"{row['train_seconds']:.0f}",
            ]
            for row in result["rows"]
        ]
        console.table("held-out accuracy", ["variant", "tokens", "accuracy [95 %]", "trained parameters", "training s"], rows)
        console.out.print(f"plot -> {result['plot']}")
    return result


@app.command()
def tune(
    recipe: Recipe,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE", help="low..high or one,two,three; repeatable. If not given: rates, warm-up, LoRA, tokens per picture."
        ),
    ] = None,
    set_: Set = None,
    trials: Annotated[int, typer.Option(min=1, help="In all, those of other workers and earlier calls included.")] = 20,
    hours: Annotated[float | None, typer.Option(min=0.0, help="Begin no further trial after so long.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions by which a trial is judged.")] = 200,
    storage: Annotated[str | None, typer.Option(help="A database URL that several workers share; otherwise SQLite in the study.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Look for better settings with Optuna: train, judge by held-out questions, prune what falls behind.

    The recipe as it is goes first. What was begun is gone on with; start the command on several machines to share a study.
    """
    from .. import console
    from ..recipe import load_recipe
    from ..tuning import Tuning, parse_range, usual_ranges

    changes = tuple(set_ or ())
    ranges = [parse_range(one) for one in vary] if vary else usual_ranges(load_recipe(recipe, changes))
    result = Tuning(recipe, changes, tuple(ranges), trials, hours, questions, storage, device, run_verb)()
    if json:
        console.print_json(result)
    else:
        best = result["best"]
        settings = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in best["settings"].items()]
        console.table(f"trial {best['number']}: {best['value']:.3f} of held-out questions right", ["setting", "value"], settings)
        console.out.print(f"train it with: phisense train {result['recipe']}\nreport -> {result['report']}", soft_wrap=True)
    return result
