"""Convert any data set to the format that phisense, TRL and `datasets` all read.

    OUT/metadata.jsonl      {"id", "messages": [{"role", "content": [{"type": "image"}, {"type":
                            "text", "text": ...}]}], "images_file_names": ["images/...", ...]}; an
                            unsupervised answer has "weight": 0
    OUT/images/             the images, hard-linked if the file system can, else copied
    OUT/rejects.jsonl       every rejected row, and why
    OUT/manifest.json       counts

`datasets.load_dataset("imagefolder", data_dir=OUT)` gives columns `id`, `messages` and `images`
(decoded); TRL's `SFTTrainer` accepts them unchanged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import orjson

from .. import artifacts
from ..console import json_bytes
from ..pipeline.progress import OnEvent, ignore
from ..pipeline.records import Record
from .check import CheckReport
from .defects import Defect
from .image_finder import ImageFinder
from .rows import Row, validate_row
from .sources import open_data_source
from .types import IMAGE, Message

DATASET_KIND = "data set"
REJECTS_PREFIX = '{"row":'  # first bytes of rejects.jsonl
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class ConversionCounts(Record):
    """Rows of the source, and how many of them were written and rejected."""

    rows: int
    written: int
    rejected: int


class TextPart(TypedDict):
    """A part of a message's content, as chat templates take it: type `image` or `text`."""

    type: str
    text: str


class ConvertedMessage(TypedDict):
    """A message of `metadata.jsonl`; an unsupervised answer has weight 0."""

    role: str
    content: list[TextPart]
    weight: NotRequired[int]


class ConvertedRow(TypedDict):
    """A row of `metadata.jsonl`."""

    id: str
    messages: list[ConvertedMessage]
    images_file_names: list[str]


def convert(
    path: Path,
    out: Path,
    checked: CheckReport,
    pictures: Sequence[Path] = (),
    *,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> ConversionCounts:
    """Write the rows of `path` that `checked` did not reject, atomically; returns the counts.

    `checked` must have checked the image files, which it does if it has image folders.
    """
    source = open_data_source(path)
    finder = ImageFinder([*pictures, *([source.pictures] if source.pictures is not None else [])])
    counts = ConversionCounts(checked.rows, 0, len(checked.rejected))
    about: dict[str, object] = {"counts": counts.to_dict(), "shapes": dict(checked.shapes)}
    with artifacts.staged_artifact(
        out, kind=DATASET_KIND, about=about, overwrite=overwrite
    ) as folder:
        written = 0
        with (folder / "metadata.jsonl").open("wb") as file:
            for number, raw, fault in source.rows():
                if number in checked.rejected:
                    continue
                row = validate_row(raw, number, fault)
                file.write(orjson.dumps(_converted_row(row, finder, folder)) + b"\n")
                written += 1
                if not written % _CHUNK:
                    on_event(source.progress("writing rows"))
        _write_rejects(folder / "rejects.jsonl", checked)
        counts = replace(counts, written=written)
        about["counts"] = counts.to_dict()
    return counts


def _write_rejects(path: Path, checked: CheckReport) -> None:
    """Write one line for each finding that rejects its row."""
    artifacts.write_bytes(path, b"".join(_lines(checked.rejects)))


def _lines(findings: Sequence[Defect]) -> Iterator[bytes]:
    for finding in findings:
        # the id may be invalid UTF-8, which is then the row's defect
        yield json_bytes(finding.to_finding().to_dict())


def _converted_row(row: Row, finder: ImageFinder, folder: Path) -> ConvertedRow:
    conversation = row.conversation()
    for name in conversation.images:
        target = folder / "images" / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in row.embedded:
            target.write_bytes(row.embedded[name])
        else:
            _link(finder.path(name), target)
    return {
        "id": conversation.id,
        "messages": [_converted_message(message) for message in conversation.messages],
        "images_file_names": [f"images/{name}" for name in conversation.images],
    }


def _converted_message(message: Message) -> ConvertedMessage:
    made = ConvertedMessage(role=message.role, content=_parts(message.text))
    if not message.supervised:
        made["weight"] = 0
    return made


def _parts(text: str) -> list[TextPart]:
    """Split text at `<image>` markers into content parts, as chat templates take them."""
    parts: list[TextPart] = []
    for at, piece in enumerate(text.split(IMAGE)):
        if at:
            parts.append({"type": "image", "text": ""})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


__all__ = ["DATASET_KIND", "REJECTS_PREFIX", "convert"]
