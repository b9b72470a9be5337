"""The verb that shows a model to everybody: deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .common import Json, Model, Overwrite, app


@app.command()
def deploy(
    model: Model,
    space: Annotated[
        str,
        typer.Option(
            metavar="USER/NAME",
            help="The Space, and the model's repository, on the Hugging Face hub.",
        ),
    ],
    gguf: Annotated[
        Path | None,
        typer.Option(
            help=(
                "What phisense export wrote of the model: the Space then runs it in llama.cpp, on a"
                " CPU."
            )
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help=(
                "Such as cpu-basic, zero-a10g or t4-small. Some cost money; without it the Space"
                " only suggests what suits the model."
            )
        ),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            help="Write the folders here instead of uploading; needs no token and no network."
        ),
    ] = None,
    overwrite: Overwrite = False,
    private: Annotated[
        bool, typer.Option("--private", help="Only you see the model and the Space.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence", "--license", help="Of the model, as the hub writes it: mit, apache-2.0."
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(help="For the card: a model on the hub that it was made from. Repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="For the card: a data set on the hub that it learned from. Repeatable."),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(help="For the card: a folder that phisense evaluate wrote. Repeatable."),
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Publish a model with a card, and a Space where anybody can talk to it.

    Uploads what the model folder's manifest names and what is listed at the end, and nothing else;
    tokens and secrets are neither written nor set. `--dry-run DIR` writes the same, and `python
    DIR/space/app.py` opens the page from there.
    """
    import os

    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # an upload takes minutes
    from .. import console, safe_replace
    from ..publish import space as spaces
    from ..publish.card import CardMetadata

    told = CardMetadata(tuple(base_model or ()), tuple(dataset or ()), licence, tuple(report or ()))
    if dry_run is None:
        spaces.check_hub_token()
    elif dry_run.resolve() in (model.resolve(), *([gguf.resolve()] if gguf else [])):
        raise UsageError(
            "the dry run would replace the model",
            got=str(dry_run),
            do="Name another folder with --dry-run",
        )
    else:
        instead = "Name another folder with --dry-run, or replace it with --overwrite"
        safe_replace.check_can_write(
            dry_run, kind=spaces.SPACE_KIND, overwrite=overwrite, hint=instead
        )
    made = spaces.plan_space(space, model, gguf, hardware, private, told)
    if dry_run is not None:
        with spaces.staged_space(made, dry_run, overwrite=overwrite) as folder:
            files = _files(folder)
        result = {
            "space": space,
            "hardware": made.hardware,
            "dry_run": str(dry_run),
            "url": None,
            "files": files,
        }
    else:
        safe_replace.remove_leftovers(model.resolve().parent)
        with safe_replace.staging_folder(model.resolve(), kind=spaces.SPACE_KIND) as aside:
            spaces.write_repositories(made, aside)
            files = _files(aside)
            url = spaces.upload_repositories(
                made, aside, lambda what: console.err.print(f"uploading: {what}")
            )
        result = {
            "space": space,
            "hardware": made.hardware,
            "dry_run": None,
            "url": url,
            "files": files,
        }
    if json:
        console.print_json(result)
    else:
        _print_deployment(result, private)
    return result


def _files(folder: Path) -> dict[str, int]:
    """Name and bytes of everything that is uploaded, `model/...` to the one repository and
    `space/...` to the other.
    """
    return {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent != folder
    }


def _print_deployment(result: dict[str, Any], private: bool) -> None:
    from .. import console

    files: dict[str, int] = result["files"]
    shown = {name: size for name, size in files.items() if not name.startswith("space/phisense/")}
    for name, size in shown.items():
        console.out.print(f"{size / 1e6:10.2f} MB  {name}")
    rest = [size for name, size in files.items() if name not in shown]
    console.out.print(
        f"{sum(rest) / 1e6:10.2f} MB  space/phisense/ ({len(rest)} files of the package)"
    )
    if result["dry_run"]:
        console.out.print(
            f"Nothing was uploaded. Try it: python {result['dry_run']}/space/app.py", soft_wrap=True
        )
    else:
        console.out.print(f"{result['url']} builds now, for {result['hardware']}.", soft_wrap=True)
    if private:
        console.out.print(
            "A private model is read by the Space with a token: add a secret HF_TOKEN, one that may"
            " only read, in its settings."
        )
