"""The command line: one function for each verb, in the order one needs them. Each imports its room only when it is called.

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted. A verb returns what it would print with `--json`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import ChatError, DataError, PhisenseError, UsageError

app = typer.Typer(
    name="phisense",
    help="A small text model learns to see and hear, on one GPU, and proves at every step that it did.\n\n"
    "The road: check -> features -> train -> merge -> evaluate -> chat or app. `phisense demo` walks it in miniature.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Recipe = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped one: practice, phi3.5-clip-l336, phi3.5-clip-l336-16gb.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. train.instruct.epochs=2. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")]
Model = Annotated[Path, typer.Argument(help="A model folder, as phisense merge writes it.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    if debug:
        os.environ["PHISENSE_DEBUG"] = "1"
        return
    from . import console

    console.quiet()


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder that picture names are relative to; without it pictures are not looked at.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Read a data set and name every defect: the row, its id, and what is wrong. Exit code 1 if there is one."""
    from . import console
    from .conversations import check as look
    from .vision.pictures import picture_defect

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
    from . import console
    from .recipe import load_recipe
    from .showing import rendered_rows

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
    from . import console
    from .conversations import read_conversations
    from .model.device import compute_dtype, pick_device
    from .recipe import load_recipe
    from .vision.encoders import Encoder
    from .vision.store import encode_pictures

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


@app.command()
def train(
    recipe: Recipe,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Train in two stages: align (projector), then instruct (projector and QLoRA). Writes a run folder."""
    from . import console
    from .recipe import load_recipe
    from .training import Training

    r = load_recipe(recipe, tuple(set_ or ()))
    with console.bars() as bar:

        def report(row: dict[str, Any]) -> None:
            loss = f"loss {row['loss']:.3f}  " if "loss" in row else ""
            bar(row["stage"], row["step"], row["steps"], f"{loss}{row['tokens_per_second']:,.0f} tokens/s")

        facts = Training(r, report, resume=resume, device=device)()
    result = {"run": str(r.run), **facts}
    if json:
        console.print_json(result)
    else:
        console.out.print(
            f"{facts['trainable']:,} parameters trained, as the shapes say, in {len(facts['modules'])} LoRA modules and the projector"
        )
        console.out.print(f"the projector moved by {facts['projector_change']:.1%}")
        console.out.print(f"run -> {r.run} (loss.png, metrics.jsonl, train.json)")
    return result


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run folder, as phisense train writes it.")],
    out: Annotated[Path | None, typer.Option(help="The model folder to write; otherwise models/<name> beside runs.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Merge the adapter into the base, measure what that did, and write a native model folder; refuse a lossy merge."""
    from . import console
    from .merging import merge as merge_run

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
def evaluate(
    model: Model,
    data: Annotated[list[Path], typer.Option(help="Questions (JSONL) or LLaVA JSON. Repeatable.")],
    images: Annotated[Path, typer.Option(help="The folder of the pictures.")],
    image: Annotated[str, typer.Option(help="real, blind, shuffled, or all three: with its picture, with none, with another's.")] = "all",
    out: Annotated[Path | None, typer.Option(help="The report folder; otherwise reports/<model>-<data>.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions, evenly spaced.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """Ask held-out questions and score the answers; say whether the model looks at the picture at all."""
    from . import console
    from .conversations import read_questions
    from .evaluation import CONDITIONS
    from .evaluation import evaluate as run_evaluation
    from .model import load_model

    if image not in (*CONDITIONS, "all"):
        raise UsageError("unknown --image", got=image, wanted="real, blind, shuffled or all")
    questions = [q for file in data for q in read_questions(file)]
    if limit is not None:
        questions = questions[:: -(-len(questions) // limit)] if questions else []
    folder = out or Path("reports") / f"{model.resolve().name}-{data[0].stem}"
    with console.bars() as bar:
        scores = run_evaluation(
            load_model(model, device), questions, images, out=folder, conditions=CONDITIONS if image == "all" else (image,), batch=batch,
            max_new_tokens=max_new_tokens, seed=seed, title=f"{model.resolve().name} on {data[0].stem}", progress=bar,
        )  # fmt: skip
    result = {"report": str(folder / "report.html"), **scores}
    if json:
        console.print_json(result)
    else:
        ran = [name for name in CONDITIONS if name in scores]
        kinds = sorted(scores[ran[0]]["kinds"])
        rows = [["all", *(f"{scores[name]['accuracy']['value']:.3f}" for name in ran)]]
        rows += [[kind, *(f"{scores[name]['kinds'][kind]['value']:.3f}" for name in ran)] for kind in kinds]
        console.table(f"accuracy on {scores['questions']} questions", ["kind", *ran], rows)
        if "looks" in scores:
            looks = scores["looks"]["verdict"] == "looks"
            console.out.print(
                "The model looks at the picture." if looks else "The model is BLIND: the picture does not help it.",
                style="green" if looks else "red",
            )
        console.out.print(f"report -> {folder / 'report.html'}")
    return result


@app.command()
def ask(
    model: Model,
    question: Annotated[str | None, typer.Option("--question", "-q", help="The question.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    sound: Annotated[Path | None, typer.Option(help="A recorded question instead of a typed one.")] = None,
    speech: Annotated[str | None, typer.Option(help="The speech part for --sound; otherwise the one of the recipe.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    device: Device = "auto",
    json: Json = False,
) -> dict[str, Any]:
    """One question, one answer, for scripts."""
    from . import console
    from .chat import Sampling, Session
    from .chat.torch_engine import TorchEngine
    from .vision.pictures import open_picture

    if (question is None) == (sound is None):
        raise UsageError("ask needs one question", got="both" if question is not None else "none", wanted="--question or --sound")
    if question is not None and not question.strip():
        raise ChatError("the question is empty", do="Type something after --question")
    picture = None if image is None else open_picture(image)
    heard = None
    if sound is not None:
        from .speech import Transcriber

        part = speech or _speech_part(model)
        if part is None:
            raise UsageError(f"{model} names no speech part", do="Name one with --speech, for example --speech openai/whisper-small")
        heard = question = Transcriber(part).transcribe(sound).text
    session = Session(TorchEngine.open(model, device), Sampling(max_new_tokens))
    session.show(picture)
    answer = "".join(session.ask(str(question))).strip()
    result = {"question": question, "answer": answer, "image": None if image is None else str(image), "heard": heard}
    if json:
        console.print_json(result)
    else:
        if heard is not None:
            console.err.print(f"heard: {heard}", markup=False)
        console.out.print(answer, markup=False)
    return result


@app.command()
def chat(
    model: Model,
    image: Annotated[Path | None, typer.Option(help="The picture to talk about.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always gives the likeliest answer.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    device: Device = "auto",
) -> None:
    """Talk in the terminal; answers appear as they are made."""
    from . import console
    from .chat import Sampling, Session
    from .chat.terminal import talk
    from .chat.torch_engine import TorchEngine
    from .vision.pictures import open_picture

    picture = None if image is None else open_picture(image)
    session = Session(TorchEngine.open(model, device), Sampling(max_new_tokens, temperature))
    session.show(picture)
    talk(session, console.out)


@app.command("app")
def app_(
    model: Model,
    speech: Annotated[
        str | None, typer.Option(help="A Whisper for the voice tab: folder or hub id; otherwise the one of the recipe.")
    ] = None,
    examples: Annotated[Path | None, typer.Option(help="Questions (JSONL) whose first pictures become examples.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the examples' pictures.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    device: Device = "auto",
) -> None:
    """Open the page: a picture, questions by keyboard or by voice, answers as they are made."""
    from .app import build, find_examples, launch
    from .chat.torch_engine import TorchEngine
    from .speech import Transcriber

    if (examples is None) != (images is None):
        raise UsageError("examples need both their questions and their pictures", wanted="--examples FILE --images DIR")
    found = find_examples(examples, images) if examples is not None and images is not None else []
    part = speech or _speech_part(model)
    page = build(TorchEngine.open(model, device), Transcriber(part) if part else None, found)
    launch(page, host=host, port=port, allowed=[example.picture for example in found])


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe, to look for its parts and plan its memory.")] = None, json: Json = False
) -> dict[str, Any]:
    """What this machine has: versions, device, attention, memory; and whether a recipe's parts and data can be found."""
    from . import console
    from .doctor import examine
    from .recipe import load_recipe

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
    scenes: Annotated[int, typer.Option(min=100, help="To train on: fewer are faster and teach less.")] = 4000,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
) -> dict[str, Any]:
    """The whole road in miniature, in minutes on two CPU cores: a small model learns to look, is merged, evaluated and talked to."""
    from .practice.demo import walk

    return walk(out, seed=seed, scenes=scenes, app_port=port if with_app else None, verb=run_verb)


def run_verb(*words: object) -> Any:
    """Runs a verb as the command line does, and returns its result; errors are raised."""
    return app([str(word) for word in words], standalone_mode=False)


def _speech_part(model: Path) -> str | None:
    """The speech part that the model's recipe named, if any."""
    from . import artefact
    from .model.folder import KIND

    path = model / artefact.MANIFEST
    part: str | None = artefact.read_manifest(model, kind=KIND, verify=False).get("speech") if path.is_file() else None
    return part


def main() -> None:
    """The entry point: errors as one sentence, and the exit code that goes with them."""
    try:
        app()  # leaves by SystemExit: 0, 2 for a wrong command line, 130 for Ctrl-C
    except PhisenseError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"The system refused: {error.strerror}{f': {error.filename}' if error.filename else ''}.", 1)


def _fail(message: str, code: int) -> None:
    from . import console

    if os.environ.get("PHISENSE_DEBUG"):
        console.err.print_exception()
    console.err.print(message, style="red", markup=False)
    sys.exit(code)
