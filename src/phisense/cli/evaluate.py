"""The verb that judges a model: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .common import (
    CONDITION_NAMES,
    TASK_NAMES,
    ChatModel,
    EngineChoice,
    EngineDevice,
    Json,
    Overwrite,
    PictureTokens,
    Quantize,
    ServedName,
    ServerUrl,
    Set,
    app,
    one_of,
    print_caveats,
)

if TYPE_CHECKING:
    from ..evaluation.results import EvaluationReport
    from ..intervals import Interval


@app.command()
def evaluate(
    context: typer.Context,
    model: ChatModel = None,
    task: Annotated[
        str,
        one_of(
            TASK_NAMES,
            text=(
                "own: your questions, of any shape that check reads; or a benchmark"
                " (docs/evaluation.md)."
            ),
        ),
    ] = "own",
    data: Annotated[
        list[str] | None,
        typer.Option(help="The questions: a file, or a benchmark's id on the hub. Repeatable."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="The folder of the pictures; may be repeated.")
    ] = None,
    condition: Annotated[
        str,
        one_of(
            CONDITION_NAMES,
            text="With its picture, with none, with another's, or all three.",
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The report folder; otherwise reports/MODEL-DATA or reports/MODEL-BENCHMARK."
        ),
    ] = None,
    overwrite: Overwrite = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many questions, drawn by their ids: the same each time."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Questions at once, in torch; otherwise evaluate.batch_size of its recipe, or 64.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=(
                "Of an answer; otherwise, of your questions, evaluate.max_new_tokens of the model's"
                " recipe, or what the benchmark's answers need."
            ),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffling and of the intervals.")] = 0,
    lmms_eval: Annotated[
        str | None,
        typer.Option(
            "--lmms-eval",
            metavar="TASKS",
            help="Instead: lmms-eval's own tasks (pope,gqa), where it is installed.",
        ),
    ] = None,
    lmms_include: Annotated[
        Path | None,
        typer.Option("--lmms-include", help="A folder with task files of yours for lmms-eval."),
    ] = None,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    set_: Set = None,
    server: ServerUrl = None,
    served: ServedName = None,
    json: Json = False,
) -> dict[str, object]:
    """Ask questions whose answers are known, with the picture, without, and with another's; score
    them; say whether the model looks.

    Interrupted, it goes on where it was when called again in the same way. A model folder is asked
    in batches in torch, and so is a run folder, as it was trained and unmerged (--set
    language.part=FOLDER says where its parts lie now); what phisense export wrote in llama.cpp;
    with --server any server that speaks OpenAI's protocol.
    """
    from .. import console

    if lmms_eval is not None:
        _reject_other_options(context)
        return _run_lmms_eval(model, lmms_eval, out, device, lmms_include, limit, json)
    if condition not in ("real", "blind", "shuffled", "all"):
        raise UsageError(
            "unknown --condition", got=condition, wanted="real, blind, shuffled or all"
        )
    from ..evaluation.results import CONDITIONS
    from ..pipeline.evaluate import evaluate as run_evaluation
    from .rendering import events

    with events() as on_event:
        report = run_evaluation(
            model,
            task,
            data=data or (),
            images=images or (),
            conditions=CONDITIONS if condition == "all" else (condition,),
            out=out,
            overwrite=overwrite,
            device=device,
            engine=engine,
            server=server,
            served_model=served,
            picture_tokens=picture_tokens,
            quantize=quantize,
            changes=set_ or (),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            limit=limit,
            seed=seed,
            on_event=on_event,
        )
    assert report.folder is not None
    page = report.folder / "report.html"
    result: dict[str, object] = {"report": str(page), **report.to_dict()}
    if json:
        console.print_json(result)
    else:
        _print_scores(report)
        console.out.print(f"report -> {page}")
    return result


def _reject_other_options(context: typer.Context) -> None:
    """lmms-eval brings its own questions and ways of asking: what else was said on the command line
    would be without effect.
    """
    taken = {"model", "lmms_eval", "lmms_include", "out", "device", "limit", "json"}
    told = [
        name
        for name in context.params
        if name not in taken and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if told:
        options = ", ".join(f"--{name.rstrip('_').replace('_', '-')}" for name in told)
        raise UsageError(
            "lmms-eval asks its own questions in its own way",
            got=options,
            do="Leave that out, or --lmms-eval",
        )


def _run_lmms_eval(
    model: Path | None,
    tasks: str,
    out: Path | None,
    device: str,
    include: Path | None,
    limit: int | None,
    json: bool,
) -> dict[str, object]:
    from .. import console
    from ..evaluation.lmms import run_lmms_eval

    if model is None:
        raise UsageError(
            "lmms-eval asks a model folder", wanted="phisense evaluate MODEL --lmms-eval TASKS"
        )
    folder = out or Path("reports") / f"{model.resolve().name}-lmms-eval"
    found = run_lmms_eval(model, tasks, folder, device=device, include=include, limit=limit)
    result = found.to_dict()
    if json:
        console.print_json(result)
    else:
        rows = [
            [name, metric, f"{value:.4f}"]
            for name, metrics in found.tasks.items()
            for metric, value in metrics.items()
        ]
        console.print_table("by lmms-eval", ["task", "metric", "value"], rows)
        console.out.print(f"what it wrote -> {found.report}")
    return result


def _print_scores(report: EvaluationReport) -> None:
    from .. import console

    ran = list(report.conditions)
    first = report.conditions[ran[0]]
    rows = [
        [name, *(_format_figure(report.metric(condition, name)) for condition in ran)]
        for name in first.metrics
    ]
    rows += [
        [f"  {kind}", *(f"{report.conditions[name].kinds[kind].value:.3f}" for name in ran)]
        for kind in first.kinds
    ]
    console.print_table(f"{report.questions:,} questions, 95 % intervals", ["", *ran], rows)
    print_caveats(report.caveats)
    if report.looks is not None:
        over = ", ".join(
            f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] over {name}"
            for name, one in report.looks.over.items()
        )
        said, style = _VERDICTS[report.looks.verdict]
        console.out.print(f"{said}: {report.looks.metric} {over}.", style=style)


_VERDICTS = {
    "looks": ("The model looks at the picture", "green"),
    "blind": ("The model is BLIND: the picture does not help it", "red"),
    "too few": ("There are too few questions to say whether the model looks", "yellow"),
}


def _format_figure(figure: Interval | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} [{figure.low:.2f}-{figure.high:.2f}]"
