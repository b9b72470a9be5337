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
    VerbResult,
    app,
    one_of,
)

if TYPE_CHECKING:
    from ..evaluation.lmms import LmmsEvalResult


TaskOption = Annotated[
    str,
    one_of(
        TASK_NAMES,
        text=(
            "own: your questions, of any shape that check reads; or a benchmark"
            " (docs/evaluation.md)."
        ),
    ),
]
Questions = Annotated[
    list[str] | None,
    typer.Option(help="The questions: a file, or a benchmark's id on the hub. Repeatable."),
]
QuestionImages = Annotated[
    list[Path] | None, typer.Option(help="The folder of the pictures; may be repeated.")
]
ConditionOption = Annotated[
    str,
    one_of(
        CONDITION_NAMES,
        text="With its picture, with none, with another's, or all three.",
    ),
]
ReportFolder = Annotated[
    Path | None,
    typer.Option(
        help="The report folder; otherwise reports/MODEL-DATA or reports/MODEL-BENCHMARK."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Only so many questions, drawn by their ids: the same each time."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Questions at once, in torch; otherwise evaluate.batch_size of its recipe, or 64.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=(
            "Of an answer; otherwise, of your questions, evaluate.max_new_tokens of the model's"
            " recipe, or what the benchmark's answers need."
        ),
    ),
]
EvaluationSeed = Annotated[int, typer.Option(min=0, help="Of the shuffling and of the intervals.")]
LmmsTasks = Annotated[
    str | None,
    typer.Option(
        "--lmms-eval",
        metavar="TASKS",
        help="Instead: lmms-eval's own tasks (pope,gqa), where it is installed.",
    ),
]
LmmsInclude = Annotated[
    Path | None,
    typer.Option("--lmms-include", help="A folder with task files of yours for lmms-eval."),
]


@app.command()
def evaluate(
    context: typer.Context,
    model: ChatModel = None,
    task: TaskOption = "own",
    data: Questions = None,
    images: QuestionImages = None,
    condition: ConditionOption = "all",
    out: ReportFolder = None,
    overwrite: Overwrite = False,
    limit: Limit = None,
    batch_size: BatchSize = None,
    max_new_tokens: MaxNewTokens = None,
    seed: EvaluationSeed = 0,
    lmms_eval: LmmsTasks = None,
    lmms_include: LmmsInclude = None,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    set_: Set = None,
    server: ServerUrl = None,
    served: ServedName = None,
    json: Json = False,
) -> VerbResult:
    """Ask questions whose answers are known, with the picture, without, and with another's; score
    them; say whether the model looks.

    Interrupted, it goes on where it was when called again in the same way. A model folder is asked
    in batches in torch, and so is a run folder, as it was trained and unmerged (--set
    language.part=FOLDER says where its parts lie now); what phisense export wrote in llama.cpp;
    with --server any server that speaks OpenAI's protocol.
    """
    if lmms_eval is not None:
        _reject_other_options(context)
        return _run_lmms_eval(model, lmms_eval, out, device, lmms_include, limit, json)
    if condition not in ("real", "blind", "shuffled", "all"):
        raise UsageError(
            "unknown --condition", got=condition, wanted="real, blind, shuffled or all"
        )
    from ..evaluation.results import CONDITIONS
    from ..pipeline.evaluate import evaluate as run_evaluation
    from .printing import print_evaluation
    from .rendering import events, print_as_json

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
    if json:
        print_as_json(report)
    else:
        print_evaluation(report)
    return report


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
) -> LmmsEvalResult:
    from .. import console
    from ..evaluation.lmms import run_lmms_eval
    from .rendering import print_as_json

    if model is None:
        raise UsageError(
            "lmms-eval asks a model folder", wanted="phisense evaluate MODEL --lmms-eval TASKS"
        )
    folder = out or Path("reports") / f"{model.resolve().name}-lmms-eval"
    found = run_lmms_eval(model, tasks, folder, device=device, include=include, limit=limit)
    if json:
        print_as_json(found)
    else:
        rows = [
            [name, metric, f"{value:.4f}"]
            for name, metrics in found.tasks.items()
            for metric, value in metrics.items()
        ]
        console.print_table("by lmms-eval", ["task", "metric", "value"], rows)
        console.out.print(f"what it wrote -> {found.report}")
    return found
