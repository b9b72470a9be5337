"""The verbs that hand a model on: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .common import Json, Model, app


@app.command()
def export(
    model: Model,
    to: Annotated[str, typer.Option(help="gguf: the files of llama.cpp and Ollama.")] = "gguf",
    quant: Annotated[str, typer.Option(help="q4_k_m (a third of the size), q8_0 (half), or f16 (nothing is lost).")] = "q4_k_m",
    out: Annotated[Path | None, typer.Option(help="The folder to write; otherwise MODEL-QUANT, beside the model.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Held-out questions to compare answers on; otherwise 24 about drawn pictures.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="The folder of their pictures; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of the questions, evenly spaced.")] = 100,
    json: Json = False,
) -> dict[str, Any]:
    """Write a model folder as llama.cpp's files, and measure what that changed.

    The float16 file must give torch's logits (the same likeliest token at 99 % of positions, mean KL at most 0.001) or nothing is written;
    what the chosen quantisation costs is measured beside it. `phisense chat` and `app` open the folder on machines without a GPU; llama.cpp
    and Ollama open its files as they are (docs/llama.md).
    """
    from .. import artefact, console
    from ..conversations import read_questions

    if to != "gguf":
        raise UsageError("unknown --to", got=to, wanted="gguf")
    if bool(data) != bool(images):
        raise UsageError("questions need both their rows and their pictures", wanted="--data FILE --images DIR, or neither")
    artefact.check_is_model(model)
    questions = [q for file in data or () for q in read_questions(file)]
    from ..publish.agreement import chosen, drawn
    from ..publish.exporting import export as run_export

    asked, pictures = chosen(questions, images or [], limit) if data else drawn()
    folder = out or model.resolve().with_name(f"{model.resolve().name}-{quant}")
    with console.bars() as bar:
        report = run_export(model, folder, quant, asked, pictures, bar)
    result = {"folder": str(folder), **report}
    if json:
        console.print_json(result)
    else:
        rows = [
            [name, f"{report[name]['top1']:.2%}", f"{report[name]['kl']:.2g}", f"{report[name]['same_answers']:.1%}"]
            for name in dict.fromkeys(("f16", quant))
        ]
        asked_about = "held-out pictures" if data else "drawn pictures"
        console.table(f"{len(asked)} questions about {asked_about}", ["file", "same likeliest token", "KL to torch", "same answers"], rows)
        for name, size in report["bytes"].items():
            console.out.print(f"{name}: {size / 1e6:,.1f} MB")
        if not report["mmproj"]:
            console.out.print(f"No mmproj: {report['mmproj_why_not']}. Our own engine reads the folder all the same.", style="yellow")
        elif report["mmproj_caution"]:
            console.out.print(f"mmproj: {report['mmproj_caution']}.", style="yellow")
        console.out.print(f"folder -> {folder}")
    return result
