"""What the verbs share: the typer application, the kinds of arguments, and how errors leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..heap import return_large_blocks

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
PictureTokens = Annotated[int | None, typer.Option(help="Tokens a picture takes, of those that a model of nested training serves.")]
Model = Annotated[Path, typer.Argument(help="A model folder, as phisense merge writes it.")]

Talker = Annotated[
    Path | None,
    typer.Argument(help="A model folder, as phisense merge writes it, or what phisense export writes. Not needed with --server."),
]
Which = Annotated[str, typer.Option("--engine", help="torch, llama or remote; auto takes what fits the folder.")]
Quantise = Annotated[bool, typer.Option("--quantise", help="Hold the language part in NF4: a third of the memory (torch).")]
Server = Annotated[str | None, typer.Option(help="Ask a server that speaks OpenAI's chat protocol, such as http://localhost:8000/v1.")]
Served = Annotated[str | None, typer.Option(help="The model's name at the server, if it has several.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    return_large_blocks()
    if debug:
        os.environ["PHISENSE_DEBUG"] = "1"
        return
    from .. import console

    console.quiet()


def run_verb(*words: object) -> Any:
    """Runs a verb as the command line does, and returns its result; errors are raised."""
    return app([str(word) for word in words], standalone_mode=False)


def chosen(model: Path | None, engine: str, server: str | None) -> Any:
    """Which engine it will be: what can be said before anything heavy is imported."""
    from ..chat.choose import choose
    from ..errors import UsageError

    if engine not in ("auto", "torch", "llama", "remote"):
        raise UsageError("unknown engine", got=engine, wanted="auto, torch, llama or remote")
    return choose(model, engine, server)  # type: ignore[arg-type]
