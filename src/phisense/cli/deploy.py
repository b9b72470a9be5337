"""The verb that shows a model to everybody: deploy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Json, Model, Overwrite, VerbResult, app

if TYPE_CHECKING:
    from ..publish.deployment import Deployment


SpaceName = Annotated[
    str,
    typer.Option(
        metavar="USER/NAME",
        help="The Space, and the model's repository, on the Hugging Face hub.",
    ),
]
ExportedFolder = Annotated[
    Path | None,
    typer.Option(
        help=(
            "What phisense export wrote of the model: the Space then runs it in llama.cpp, on a"
            " CPU."
        )
    ),
]
Hardware = Annotated[
    str | None,
    typer.Option(
        help=(
            "Such as cpu-basic, zero-a10g or t4-small. Some cost money; without it the Space"
            " only suggests what suits the model."
        )
    ),
]
InFourBits = Annotated[
    bool,
    typer.Option(
        "--quantize",
        help=(
            "The Space holds the language part in NF4, with the trained adapter beside it: for a"
            " GPU of 16 GB. Refused where merge measured that 4 bits lose too much."
        ),
    ),
]
DryRunFolder = Annotated[
    Path | None,
    typer.Option(
        help="Write the folders here instead of uploading; needs no token and no network."
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Only you see the model and the Space.")]
Licence = Annotated[
    str | None,
    typer.Option(
        "--licence", "--license", help="Of the model, as the hub writes it: mit, apache-2.0."
    ),
]
BaseModels = Annotated[
    list[str] | None,
    typer.Option(help="For the card: a model on the hub that it was made from. Repeatable."),
]
DataSets = Annotated[
    list[str] | None,
    typer.Option(help="For the card: a data set on the hub that it learned from. Repeatable."),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(help="For the card: a folder that phisense evaluate wrote. Repeatable."),
]


@app.command()
def deploy(
    model: Model,
    space: SpaceName,
    gguf: ExportedFolder = None,
    hardware: Hardware = None,
    quantize: InFourBits = False,
    dry_run: DryRunFolder = None,
    overwrite: Overwrite = False,
    private: Private = False,
    licence: Licence = None,
    base_model: BaseModels = None,
    dataset: DataSets = None,
    report: Reports = None,
    json: Json = False,
) -> VerbResult:
    """Publish a model with a card, and a Space where anybody can talk to it.

    Uploads what the model folder's manifest names and what is listed at the end, and nothing else;
    tokens and secrets are neither written nor set. `--dry-run DIR` writes the same, and `python
    DIR/space/app.py` opens the page from there.
    """
    import os

    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # an upload takes minutes
    from .. import console
    from ..publish.card import CardMetadata
    from ..publish.deployment import check_target, deploy_space, write_dry_run
    from ..publish.space import plan_space
    from .rendering import print_as_json

    check_target(model, gguf, dry_run, overwrite=overwrite)
    card = CardMetadata(tuple(base_model or ()), tuple(dataset or ()), licence, tuple(report or ()))
    planned = plan_space(space, model, gguf, hardware, private, card, quantize=quantize)
    deployed = (
        deploy_space(planned, lambda what: console.err.print(f"uploading: {what}"))
        if dry_run is None
        else write_dry_run(planned, dry_run, overwrite=overwrite)
    )
    if json:
        print_as_json(deployed)
    else:
        _print_deployment(deployed, private)
    return deployed


def _print_deployment(deployed: Deployment, private: bool) -> None:
    from .. import console

    files = deployed.files
    shown = {name: size for name, size in files.items() if not name.startswith("space/phisense/")}
    for name, size in shown.items():
        console.out.print(f"{size / 1e6:10.2f} MB  {name}")
    rest = [size for name, size in files.items() if name not in shown]
    console.out.print(
        f"{sum(rest) / 1e6:10.2f} MB  space/phisense/ ({len(rest)} files of the package)"
    )
    if deployed.dry_run:
        console.out.print(
            f"Nothing was uploaded. Try it: python {deployed.dry_run}/space/app.py", soft_wrap=True
        )
    else:
        console.out.print(f"{deployed.url} builds now, for {deployed.hardware}.", soft_wrap=True)
    if private:
        console.out.print(
            "A private model is read by the Space with a token: add a secret HF_TOKEN, one that may"
            " only read, in its settings."
        )
