"""Check a data set: find every defect before training; and convert it without the unusable rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import artifacts
from ..console import json_bytes
from ..errors import DataError, UsageError
from .progress import Notice, OnEvent, ignore
from .results import CheckResult, ConvertResult

if TYPE_CHECKING:
    from ..conversations import CheckReport
    from ..vision.leaks import HeldOutImages

#: How each image is checked: fully decoded, its header only, or not at all.
ImageDepth = Literal["decode", "headers", "skip"]


def check(
    data: str | Path,
    *,
    images: Sequence[str | Path] = (),
    held_out: Sequence[str | Path] = (),
    image_depth: ImageDepth = "decode",
    recipe: str | None = None,
    rejects: str | Path | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> CheckResult:
    """Check every row of `data` and the images that it names.

    data          JSON, JSONL, CSV, Parquet, or a folder of images with metadata
    images        folders that image names are relative to, searched in order
    held_out      evaluation data whose images must not occur in `data`
    recipe        name or file of a recipe: conversations are checked against its max_length
    rejects       file to write one line per defect to, if there is any; `overwrite` replaces an
                  earlier one

    Raises ConversationError if the data does not exist, UsageError for contradictory options.
    Unusable rows are not an error here: see `require_usable`.
    """
    from .. import safe_replace
    from ..conversations.convert import REJECTS_PREFIX

    data, kept_out = Path(data), [Path(one) for one in held_out]
    rejects = None if rejects is None else Path(rejects)
    if rejects is not None:
        safe_replace.check_can_write_file(
            rejects,
            overwrite=overwrite,
            header=REJECTS_PREFIX,
            option="--rejects",
            inputs=(data, *kept_out),
        )
    checked = read_through(
        data,
        images=[Path(one) for one in images],
        held_out=kept_out,
        image_depth=image_depth,
        recipe=recipe,
        on_event=on_event,
    )
    result = checked.to_result()
    return result if rejects is None else write_rejects(result, rejects)


def convert(
    data: str | Path,
    out: str | Path,
    *,
    images: Sequence[str | Path] = (),
    held_out: Sequence[str | Path] = (),
    image_depth: ImageDepth = "decode",
    max_rejects: int | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> ConvertResult:
    """Check `data` and write its usable rows to the folder `out`; see `conversations.convert`.

    Raises DataError, with nothing written, if more than `max_rejects` rows cannot be used, and
    UsageError if `out` may not be replaced.
    """
    from .. import safe_replace
    from ..conversations.convert import DATASET_KIND
    from ..conversations.convert import convert as write

    data, out, folders = Path(data), Path(out), [Path(one) for one in images]
    safe_replace.check_can_write(out, kind=DATASET_KIND, overwrite=overwrite)
    checked = read_through(
        data,
        images=folders,
        held_out=[Path(one) for one in held_out],
        image_depth=image_depth,
        on_event=on_event,
    )
    if max_rejects is not None and len(checked.rejected) > max_rejects:
        raise DataError(
            f"{data} has {len(checked.rejected):,} rows of {checked.rows:,} that cannot be used, so"
            " nothing was written",
            wanted=f"at most {max_rejects}",
            do="Look at them with phisense check, or raise --max-rejects",
        )
    counts = write(data, out, checked, folders, overwrite=overwrite, on_event=on_event)
    found = checked.to_result()
    return ConvertResult(
        out=str(out),
        rows=counts.rows,
        written=counts.written,
        rejected=counts.rejected,
        counts=found.counts,
        notes=found.notes,
    )


def write_rejects(result: CheckResult, path: Path) -> CheckResult:
    """Write one line of JSON per defect to `path`, if there is any, and return the result with the
    file's name.
    """
    if not result.rejected:
        return result
    artifacts.write_bytes(path, b"".join(json_bytes(one.to_dict()) for one in result.defects))
    return replace(result, rejects=path)


def require_usable(result: CheckResult, data: Path, *, max_rejects: int = 0) -> None:
    """Raise DataError if more than `max_rejects` rows of `data` cannot be used."""
    if result.rejected > max_rejects:
        allowed = f", and {max_rejects} may be" if max_rejects else ""
        raise DataError(
            f"{data} has {result.rejected:,} rows of {result.rows:,} that cannot be used{allowed}",
            do="Mend or drop them, or let phisense convert leave them out; training refuses them",
        )


def read_through(
    data: Path,
    *,
    images: Sequence[Path] = (),
    held_out: Sequence[Path] = (),
    image_depth: ImageDepth = "decode",
    recipe: str | None = None,
    on_event: OnEvent = ignore,
) -> CheckReport:
    """The pass over rows and images that `check` and `convert` share; see `check`."""
    from ..conversations import check as check_rows
    from ..vision.image_checks import check_image

    for folder in images:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}", do="Name the folder of the pictures with --images"
            )
    if held_out and image_depth == "skip":
        raise UsageError(
            "held-out pictures cannot be looked for with --pictures skip",
            do="Leave one of the two out",
        )
    look = None if image_depth == "skip" else partial(check_image, decode=image_depth == "decode")
    leaks = _held_out(held_out, images, on_event).find_in if held_out else None
    measure = None
    if recipe is not None:
        from ..recipe import load_recipe
        from ..showing import length_checker

        measure = length_checker(load_recipe(recipe))
    return check_rows(
        data,
        images,
        check_image=look,
        check_length=measure,
        leaks=leaks,
        on_event=on_event,
    )


def _held_out(files: Sequence[Path], images: Sequence[Path], on_event: OnEvent) -> HeldOutImages:
    """The images of the held-out files; a notice reports those that cannot be found."""
    from ..conversations.image_finder import ImageFinder
    from ..conversations.read import read_rows
    from ..vision.leaks import HeldOutImages

    finder = ImageFinder(list(images))
    sources: dict[str, Path | bytes] = {}
    lost: dict[str, None] = {}
    for file in files:
        for row in read_rows(file):
            for picture in row.pictures:
                found = (
                    [picture.data] if picture.data is not None else finder.candidates(picture.name)
                )
                lost |= {} if found else {picture.name: None}
                for source in found:  # an ambiguous name holds out every file that it may refer to
                    name = picture.name if len(found) == 1 else str(source)
                    sources.setdefault(name, source)
    if lost:
        on_event(
            Notice(
                f"{len(lost):,} held-out pictures are in none of the folders, so that they cannot"
                f" be looked for, the first {next(iter(lost))}.",
                warning=True,
            )
        )
    return HeldOutImages(sources.items())
