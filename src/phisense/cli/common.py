"""What the verbs share: the typer application, the kinds of arguments, and how errors leave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import seams
from ..malloc import set_mmap_threshold
from .verb_result import VerbResult as VerbResult  # re-exported for the verbs

if TYPE_CHECKING:
    from ..chat import Engine
    from ..evaluation.caveats import Caveat

app = typer.Typer(
    name="phisense",
    help=(
        "A small text model learns to see and hear, on one GPU, and proves at every step that it"
        " did.\n\nThe road: check -> features -> train -> merge -> evaluate -> chat or app."
        " `phisense demo` walks it in miniature."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str,
    typer.Argument(
        help=(
            "A recipe file, or the name of a shipped one: practice, phi3.5-clip-l336,"
            " phi3.5-clip-l336-16gb."
        )
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key, e.g. train.instruct.epochs=2. Repeatable."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on the standard output.")
]


def one_of(
    names: Sequence[str], *words: str, text: str, panel: str | None = None
) -> Any:  # what typer.Option returns is not typed
    """An option that takes one of `names`: shown in the help, completed by the shell. The verb
    itself refuses others, with phisense's sentence.
    """
    return typer.Option(
        *words,
        metavar=f"[{'|'.join(names)}]",
        autocompletion=lambda: list(names),
        help=text,
        rich_help_panel=panel,
    )


def _device(text: str, panel: str | None = None) -> Any:
    return one_of(("auto", "cpu", "cuda", "cuda:N"), "--device", text=text, panel=panel)


DeviceName = Annotated[str, _device("Where it computes; auto takes the GPU if there is one.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what phisense wrote there before; never anything else."
    ),
]
Model = Annotated[Path, typer.Argument(help="A model folder, as phisense merge writes it.")]

ChatModel = Annotated[
    Path | None,
    typer.Argument(
        help=(
            "A model folder, as phisense merge writes it, or what phisense export writes. Not"
            " needed with --server."
        )
    ),
]


# The options of whatever makes answers: ask, chat, app and evaluate have them all.
_ENGINE = "Engine"
ENGINE_NAMES = ("auto", *seams.ENGINE_MODULES)
EngineChoice = Annotated[
    str,
    one_of(
        ENGINE_NAMES,
        "--engine",
        text="What generates; auto takes what fits the folder.",
        panel=_ENGINE,
    ),
]
EngineDevice = Annotated[
    str, _device("Where it computes; auto takes the GPU if there is one (torch).", _ENGINE)
]
PictureTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens a picture takes, of those that a model of nested training serves.",
        rich_help_panel=_ENGINE,
    ),
]
Quantize = Annotated[
    bool,
    typer.Option(
        "--quantize",
        help=(
            "Hold the language part in NF4, a third of the memory, with the trained adapter beside"
            " it. Refused where merge measured that 4 bits lose too much (torch)."
        ),
        rich_help_panel=_ENGINE,
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(
        help="Ask a server that speaks OpenAI's chat protocol, such as http://localhost:8000/v1.",
        rich_help_panel=_ENGINE,
    ),
]
ServedName = Annotated[
    str | None,
    typer.Option(
        help="The model's name at the server, if it has several.", rich_help_panel=_ENGINE
    ),
]


TASK_NAMES = ("own", *(name for name in seams.TASK_MODULES if name != "own"))  # the default first
CONDITION_NAMES = ("real", "blind", "shuffled", "all")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"phisense {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of every command: set up memory allocation and what is shown of errors."""
    from .. import console

    set_mmap_threshold()
    console.show_log()
    if debug:
        os.environ["PHISENSE_DEBUG"] = "1"
        return
    console.silence_libraries()


def run_verb(*words: object) -> Any:
    """Run a verb as the command line does, and return the JSON of its result; errors are raised."""
    from .rendering import to_json

    return to_json(app([str(word) for word in words], standalone_mode=False))


def print_caveats(caveats: Sequence[Caveat]) -> None:
    """Beside the figures, what their rule does not quite apply to."""
    from .. import console

    for one in caveats:
        console.err.print(str(one), style="yellow")


class SelectedEngine:
    """The engine options of a verb. Raises what is wrong with them before anything heavy is
    imported; `open` loads the model.
    """

    def __init__(
        self,
        model: Path | None,
        engine: str,
        device: str,
        picture_tokens: int | None,
        quantize: bool,
        server: str | None,
        served: str | None,
    ) -> None:
        from ..chat.open_engine import choose_engine

        self.kind = choose_engine(model, engine, server)
        self.model, self.server, self.served = model, server, served
        self.device, self.picture_tokens, self.quantize = device, picture_tokens, quantize

    def open(self) -> Engine:
        """Load the model, or connect to its server."""
        from ..chat.open_engine import open_engine

        return open_engine(
            self.model,
            engine=self.kind,
            quantize=self.quantize,
            device=self.device,
            picture_tokens=self.picture_tokens,
            server=self.server,
            served_model=self.served,
        )
