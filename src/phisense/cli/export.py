"""The verbs that hand a model on: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .common import Json, Model, Overwrite, VerbResult, app

if TYPE_CHECKING:
    from ..pipeline.results import ExportResult


Target = Annotated[str, typer.Option(help="gguf: the files of llama.cpp and Ollama.")]
Quantization = Annotated[
    str,
    typer.Option(
        help=(
            "q4_k_m (a third of the size), q5_k_m, q6_k, q8_0 (half), or f16 (nothing is lost);"
            " auto is the smallest that leaves enough answers the same."
        )
    ),
]
GGUFOutput = Annotated[
    Path | None,
    typer.Option(
        help="The folder to write; otherwise MODEL-QUANT, beside the model (auto: MODEL-gguf)."
    ),
]
ComparedQuestions = Annotated[
    list[Path] | None,
    typer.Option(
        help="Held-out questions to compare answers on; otherwise 24 about drawn pictures."
    ),
]
ComparedImages = Annotated[
    list[Path] | None, typer.Option(help="The folder of their pictures; may be repeated.")
]
ComparedAtMost = Annotated[
    int, typer.Option(min=1, help="At most so many of the questions, evenly spaced.")
]


@app.command()
def export(
    model: Model,
    to: Target = "gguf",
    quant: Quantization = "q4_k_m",
    out: GGUFOutput = None,
    overwrite: Overwrite = False,
    data: ComparedQuestions = None,
    images: ComparedImages = None,
    limit: ComparedAtMost = 100,
    json: Json = False,
) -> VerbResult:
    """Write a model folder as llama.cpp's files, and measure what that changed.

    llama.cpp's tokenizer must give the model's ids on some hundreds of texts, and the float16 file
    torch's logits (the same likeliest token at 99 % of positions, mean KL at most 0.001), or
    nothing is written. What the chosen quantization costs is measured beside it. If it leaves fewer
    than 85 % of the answers the same (q8_0: 95 %), larger ones are measured, too, and the first
    that leaves enough is named. `phisense chat` and `app` open the folder on machines without a
    GPU; llama.cpp and Ollama open its files as they are (docs/llama.md).
    """
    from ..pipeline.export import export as run_export
    from .rendering import events, print_as_json

    if to != "gguf":
        raise UsageError("unknown --to", got=to, wanted="gguf")
    with events() as on_event:
        exported = run_export(
            model,
            quant=quant,
            out=out,
            overwrite=overwrite,
            data=data or (),
            images=images or (),
            limit=limit,
            on_event=on_event,
        )
    if json:
        print_as_json(exported)
    else:
        _print_export(exported, "held-out pictures" if data else "drawn pictures")
    return exported


def _print_export(exported: ExportResult, asked_about: str) -> None:
    """The agreement of each file with torch, the sizes, and what llama.cpp can do with them."""
    from .. import console

    rows = [
        [name, f"{one.top1:.2%}", f"{one.kl:.2g}", f"{one.same_answers:.1%}"]
        for name, one in exported.agreements.items()
    ]
    console.print_table(
        f"{exported.questions} questions about {asked_about}",
        ["file", "same likeliest token", "KL to torch", "same answers"],
        rows,
    )
    if exported.calibration_questions:
        console.out.print(
            f"Importance matrix from {exported.calibration_questions} other questions"
            f" ({exported.calibrated_on})."
        )
    _print_what_holds(exported)
    for name, size in exported.bytes.items():
        console.out.print(f"{name}: {size / 1e6:,.1f} MB")
    if not exported.mmproj:
        console.out.print(
            f"No mmproj: {exported.mmproj_why_not}. Our own engine reads the folder all the same.",
            style="yellow",
        )
    elif exported.mmproj_caution:
        console.out.print(f"mmproj: {exported.mmproj_caution}.", style="yellow")
    if exported.tokenizer_caution:
        console.out.print(f"{exported.tokenizer_caution}.", style="yellow")
    console.out.print(f"folder -> {exported.folder}")


def _print_what_holds(exported: ExportResult) -> None:
    """Which quantization leaves enough answers the same, if it is not the one that was written."""
    from .. import console

    if exported.holds == exported.quant:
        return
    found = exported.agreements
    told = (
        f"{exported.quant} leaves {found[exported.quant].same_answers:.1%} of the answers the same,"
        f" and should leave {exported.min_same_answers:.0%}."
    )
    if exported.holds is not None:
        told += (
            f" {exported.holds} leaves {found[exported.holds].same_answers:.1%}: export with"
            f" --quant {exported.holds}."
        )
    console.out.print(told, style="yellow")
