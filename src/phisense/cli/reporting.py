"""The verb that lays evaluations side by side: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .common import Json, app

if TYPE_CHECKING:
    from ..evaluation.beside import Group


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Report folders, as phisense evaluate writes them; of one or several models.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file to write; otherwise report.html of the one folder, or comparison.html beside the first of several."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Make one page of several evaluations: models side by side, tasks one below the other. Of one folder, make its page again.

    Where models answered the same questions, their difference has a paired 95 % interval and the questions are shown where only one was
    right. Nothing is asked again, and neither the models nor the pictures need to be there.
    """
    from .. import artefact, console
    from ..evaluation import report as reports
    from ..evaluation.beside import compared, groups

    if out is not None and out.is_dir():
        raise UsageError("--out is a folder", got=str(out), wanted="a file to write, such as comparison.html")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a report is named twice", got=", ".join(map(str, folders)), do="Name each once")
    with console.bars() as bar:
        read = []
        for folder in folders:
            read.append(reports.read(folder))
            bar("reading", len(read), len(folders))
        made = groups(read, bar)
        heading = title or (read[0].title if len(read) == 1 else _heading(list(dict.fromkeys(one.model for one in read))))
        page = reports.render(heading, read, made).encode()
    inside = next((folder for folder in folders if out is not None and out.resolve().parent == folder.resolve()), None)
    if inside is not None and (len(read) > 1 or out is None or out.name != reports.PAGE):
        raise UsageError("--out lies in a report folder", got=str(out), do="Choose a file outside, or leave --out away")
    if len(read) == 1 and (out is None or inside is not None):
        out = reports.replace_page(folders[0], page)
    else:
        out = out or folders[0].parent / "comparison.html"
        artefact.write_bytes(out, page)
    result = {"report": str(out), **compared(*made)}
    if json:
        console.print_json(result)
    else:
        for group in made[0]:
            _tell(group)
        console.out.print(f"report -> {out}", markup=False, soft_wrap=True)
    for note in made[1]:
        console.err.print(note, style="yellow", markup=False, soft_wrap=True)
    return result


def _heading(models: list[str]) -> str:
    return f"{models[0]}, evaluated" if len(models) == 1 else f"{', '.join(models[:-1])} and {models[-1]}"


def _tell(group: Group) -> None:
    from .. import console
    from ..evaluation.scores import CONDITIONS

    rows = []
    for name, shown in zip(group.names, group.reports, strict=True):
        found = [shown.scores.get(condition, {}).get("figures", {}).get(group.headline) for condition in CONDITIONS]
        rows.append([name, *("–" if f is None else f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for f in found)])
    console.table(f"{group.title}: {group.headline}, {group.questions:,} questions", ["model", *CONDITIONS], rows)
    for one in group.differences:
        told = f"{group.names[one.of]} minus {group.names[0]}: "
        if one.figures is not None:
            figure = one.figures[group.headline]
            told += f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}], paired; "
        told += f"right alone on {one.only_it:,} and {one.only_the_first:,} questions"
        console.out.print(told, markup=False, soft_wrap=True)
