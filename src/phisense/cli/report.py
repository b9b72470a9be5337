"""The verb that lays evaluations side by side: report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .common import Json, Overwrite, VerbResult, app

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison, ComparisonGroup


ReportFolders = Annotated[
    list[Path],
    typer.Argument(
        help="Report folders, as phisense evaluate writes them; of one or several models."
    ),
]
PageFile = Annotated[
    Path | None,
    typer.Option(
        help=(
            "The HTML file to write; otherwise report.html of the one folder, or"
            " comparison.html beside the first of several."
        )
    ),
]
Title = Annotated[str | None, typer.Option(help="Of the page.")]


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """A page of one or several evaluations, and what it says."""

    page: Path
    comparison: Comparison

    def to_dict(self) -> dict[str, object]:
        """`{"report", "tasks", "notes"}`."""
        return {"report": str(self.page), **self.comparison.to_dict()}


@app.command()
def report(
    folders: ReportFolders,
    out: PageFile = None,
    overwrite: Overwrite = False,
    title: Title = None,
    json: Json = False,
) -> VerbResult:
    """Make one page of several evaluations: models side by side, tasks one below the other. Of one
    folder, make its page again.

    Where models answered the same questions, their difference has a paired 95 % interval and the
    questions are shown where only one was right. Nothing is asked again, and neither the models nor
    the pictures need to be there.
    """
    from .. import artifacts, console, safe_replace
    from ..evaluation.page import PAGE_SIGNATURE, render_page
    from ..evaluation.report_writer import replace_page
    from ..pipeline.evaluate import compare_reports
    from .rendering import print_as_json, shown_by

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(
            "a report is named twice", got=", ".join(map(str, folders)), do="Name each once"
        )
    goal, own = _output_file(folders, out)
    if not own:
        safe_replace.check_can_write_file(
            goal, overwrite=overwrite, header=PAGE_SIGNATURE, option="--out"
        )
    with console.progress_bars() as bar:
        read, comparison = compare_reports(folders, on_event=shown_by(bar))
        heading = title or (
            read[0].title
            if len(read) == 1
            else _heading(list(dict.fromkeys(one.model for one in read)))
        )
        page = render_page(heading, read, comparison).encode()
    if own:
        replace_page(folders[0], page)
    else:
        artifacts.write_bytes(goal, page)
    written = ComparisonPage(goal, comparison)
    if json:
        print_as_json(written)
    else:
        for group in comparison.groups:
            _print_group(group)
        console.out.print(f"report -> {goal}", soft_wrap=True)
    for note in comparison.notes:
        console.err.print(note, style="yellow", soft_wrap=True)
    return written


def _output_file(folders: list[Path], out: Path | None) -> tuple[Path, bool]:
    """The file to write, and whether it is the one report's own page. Raises UsageError for a place
    inside a report that is not.
    """
    from ..evaluation.results import PAGE

    if out is None:
        return (
            (folders[0] / PAGE, True)
            if len(folders) == 1
            else (folders[0].parent / "comparison.html", False)
        )
    if out.is_dir():
        raise UsageError(
            "--out is a folder", got=str(out), wanted="a file to write, such as comparison.html"
        )
    inside = any(out.resolve().parent == folder.resolve() for folder in folders)
    if inside and (len(folders) > 1 or out.name != PAGE):
        raise UsageError(
            "--out lies in a report folder",
            got=str(out),
            do="Choose a file outside, or leave --out away",
        )
    return out, inside


def _heading(models: list[str]) -> str:
    return (
        f"{models[0]}, evaluated"
        if len(models) == 1
        else f"{', '.join(models[:-1])} and {models[-1]}"
    )


def _print_group(group: ComparisonGroup) -> None:
    from .. import console
    from ..evaluation.results import SCORED

    rows = []
    for name, shown in zip(group.names, group.reports, strict=True):
        found = [shown.scores.metric(condition, group.headline) for condition in SCORED]
        cells = ("–" if f is None else f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" for f in found)
        rows.append([name, *cells])
    console.print_table(
        f"{group.title}: {group.headline}, {group.questions:,} questions",
        ["model", *SCORED],
        rows,
    )
    for one in group.differences:
        told = f"{group.names[one.index]} minus {group.names[0]}: "
        if one.metrics is not None:
            figure = one.metrics[group.headline]
            told += f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}], paired; "
        told += f"right alone on {one.only_other:,} and {one.only_first:,} questions"
        console.out.print(told, soft_wrap=True)
