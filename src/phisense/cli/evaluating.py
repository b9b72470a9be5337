"""The verb that judges a model: evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .common import Device, Json, PictureTokens, Quantise, Served, Server, Talker, Which, app, chosen


@app.command()
def evaluate(
    context: typer.Context,
    model: Talker = None,
    task: Annotated[
        str, typer.Option(help="own: your questions, of any shape that check reads; or a benchmark (docs/evaluation.md lists them).")
    ] = "own",
    data: Annotated[list[str] | None, typer.Option(help="The questions: a file, or a benchmark's id on the hub. Repeatable.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="The folder of the pictures; may be repeated.")] = None,
    image: Annotated[str, typer.Option(help="real, blind, shuffled, or all three: with its picture, with none, with another's.")] = "all",
    out: Annotated[Path | None, typer.Option(help="The report folder; otherwise reports/MODEL-DATA or reports/MODEL-BENCHMARK.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions, drawn by their ids: the same each time.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions at once, in torch.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; otherwise what the benchmark's answers need.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffling and of the intervals.")] = 0,
    lmms_eval: Annotated[
        str | None,
        typer.Option("--lmms-eval", metavar="TASKS", help="Instead: lmms-eval's own tasks (pope,gqa), where it is installed."),
    ] = None,
    lmms_include: Annotated[Path | None, typer.Option("--lmms-include", help="A folder with task files of yours for lmms-eval.")] = None,
    picture_tokens: PictureTokens = None,
    device: Device = "auto",
    engine: Which = "auto",
    quantise: Quantise = False,
    server: Server = None,
    served: Served = None,
    json: Json = False,
) -> dict[str, Any]:
    """Ask questions whose answers are known, with the picture, without, and with another's; score them; say whether the model looks.

    Interrupted, it goes on where it was when called again in the same way. A model folder is asked in batches in torch; what phisense
    export wrote in llama.cpp; with --server any server that speaks OpenAI's protocol.
    """
    from .. import console
    from ..conversations import Pictures

    if lmms_eval is not None:
        _refuse_besides(context)
        return _lmms(model, lmms_eval, out, device, lmms_include, limit, json)
    if image not in ("real", "blind", "shuffled", "all"):
        raise UsageError("unknown --image", got=image, wanted="real, blind, shuffled or all")
    kind = chosen(model, engine, server)
    if not data:
        raise UsageError("there is nothing to ask", wanted="--data FILE", do="docs/evaluation.md says where each benchmark's files are had")
    from ..evaluation.scores import CONDITIONS
    from ..evaluation.task import some_of
    from ..evaluation.tasks import find_task, unpacked

    which = find_task(task)
    questions = some_of(which.load(data, unpacked(task)), limit)
    from ..evaluation.run import evaluate as run_evaluation

    name = (model.resolve().name if model is not None else served or "server").replace("/", "-")
    on = Path(data[0]).stem if task == "own" else task
    folder = out or Path("reports") / f"{name}-{on}"
    how: dict[str, Any] = {"picture_tokens": picture_tokens, "device": device, "quantise": quantise}
    answerer = _in_torch(model, batch, **how) if kind == "torch" else _by_engine(model, kind, server, served, **how)
    with console.bars() as bar:
        scores = run_evaluation(
            which, questions, Pictures([*(images or ()), unpacked(task)]), answerer, out=folder,
            title=f"{name} on {on if task == 'own' else which.title}", conditions=CONDITIONS if image == "all" else (image,),
            max_new_tokens=max_new_tokens, seed=seed, model=model, progress=bar,
            about={"model": name, "limit": limit, "data": _files(data)},
        )  # fmt: skip
    result = {"report": str(folder / "report.html"), **scores}
    if json:
        console.print_json(result)
    else:
        _tell(scores)
        console.out.print(f"report -> {folder / 'report.html'}")
    return result


def _refuse_besides(context: typer.Context) -> None:
    """lmms-eval brings its own questions and ways of asking: what else was said on the command line would be without effect."""
    taken = {"model", "lmms_eval", "lmms_include", "out", "device", "limit", "json"}
    told = [name for name in context.params if name not in taken and str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if told:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in told)
        raise UsageError("lmms-eval asks its own questions in its own way", got=options, do="Leave that out, or --lmms-eval")


def _lmms(
    model: Path | None,
    tasks: str,
    out: Path | None,
    device: str,
    include: Path | None,
    limit: int | None,
    json: bool,
) -> dict[str, Any]:
    from .. import console
    from ..evaluation.lmms import run_lmms_eval

    if model is None:
        raise UsageError("lmms-eval asks a model folder", wanted="phisense evaluate MODEL --lmms-eval TASKS")
    folder = out or Path("reports") / f"{model.resolve().name}-lmms-eval"
    result = run_lmms_eval(model, tasks, folder, device=device, include=include, limit=limit)
    if json:
        console.print_json(result)
    else:
        rows = [[name, metric, f"{value:.4f}"] for name, found in result["tasks"].items() for metric, value in found.items()]
        console.table("by lmms-eval", ["task", "metric", "value"], rows)
        console.out.print(f"what it wrote -> {result['report']}")
    return result


def _in_torch(model: Path | None, batch: int, *, device: str, picture_tokens: int | None, quantise: bool) -> Any:
    from ..evaluation.answerers import InBatches
    from ..model import load_model

    assert model is not None
    return InBatches(load_model(model, device, picture_tokens=picture_tokens, quantise=quantise, step="evaluate"), batch)


def _by_engine(model: Path | None, kind: Any, server: str | None, served: str | None, **how: Any) -> Any:
    from ..chat.choose import open_engine
    from ..evaluation.answerers import ByEngine

    return ByEngine(open_engine(model, engine=kind, server=server, served=served, **how))


def _files(data: Sequence[str]) -> list[dict[str, Any]]:
    """What the record says of the questions' files: names, and what is in them."""
    from .. import artefact

    return [{"name": Path(one).name, "sha256": artefact.sha256(Path(one))} if Path(one).is_file() else {"name": one} for one in data]


def _tell(scores: dict[str, Any]) -> None:
    from .. import console
    from ..evaluation.scores import CONDITIONS

    ran = [name for name in CONDITIONS if name in scores]
    first = scores[ran[0]]
    rows = [[figure, *(_shown(scores[name]["figures"].get(figure)) for name in ran)] for figure in first["figures"]]
    rows += [[f"  {kind}", *(f"{scores[name]['kinds'][kind]['value']:.3f}" for name in ran)] for kind in first["kinds"]]
    console.table(f"{scores['questions']:,} questions, 95 % intervals", ["", *ran], rows)
    if "looks" in scores:
        verdict = scores["looks"]["verdict"]
        over = ", ".join(
            f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] over {name}" for name, one in scores["looks"]["over"].items()
        )
        said, style = {
            "looks": ("The model looks at the picture", "green"),
            "blind": ("The model is BLIND: the picture does not help it", "red"),
        }.get(verdict, ("There are too few questions to say whether the model looks", "yellow"))
        console.out.print(f"{said}: {scores['looks']['figure']} {over}.", style=style)


def _shown(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{figure['value']:.3f} [{figure['low']:.2f}-{figure['high']:.2f}]"
