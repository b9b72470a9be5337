"""Writes any data set as one of the shape that phisense, TRL and `datasets` read alike.

    OUT/metadata.jsonl      {"id", "messages": [{"role", "content": [{"type": "image"}, {"type": "text", "text": ...}]}],
                             "images_file_names": ["images/...", ...]}
    OUT/images/             the pictures, linked where the file system can, else copied
    OUT/rejects.jsonl       every row that was left out, and why
    OUT/manifest.json       counts

`datasets.load_dataset("imagefolder", data_dir=OUT)` gives columns `id`, `messages` and `images` (decoded); TRL's `SFTTrainer`
takes them as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from .. import artefact
from .check import Checked, Progress
from .defects import Finding
from .roots import Pictures
from .rows import Row, examine
from .sources import open_source
from .types import IMAGE

KIND = "data set"
_CHUNK = 512


def convert(
    path: Path, out: Path, checked: Checked, pictures: Sequence[Path] = (), *, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Writes the rows of `path` that `checked` did not reject, whole or not at all; returns the counts.

    Rows whose pictures are in files are written with them only if `checked` looked at them, which it does where it has folders.
    """
    artefact.refuse_to_replace(out, kind=KIND)
    source = open_source(path)
    finder = Pictures([*pictures, *([source.pictures] if source.pictures is not None else [])])
    counts = {"rows": checked.rows, "written": 0, "rejected": len(checked.rejected)}
    with artefact.staged(out, kind=KIND, about={"counts": counts, "shapes": dict(checked.shapes)}) as folder:
        with (folder / "metadata.jsonl").open("wb") as file:
            for number, raw, fault in source.rows():
                if number in checked.rejected:
                    continue
                row = examine(raw, number, fault)
                file.write(orjson.dumps(_written(row, finder, folder)) + b"\n")
                counts["written"] += 1
                if not counts["written"] % _CHUNK:
                    progress("writing rows", *source.progress())
        write_rejects(folder / "rejects.jsonl", checked)
    return counts


def write_rejects(path: Path, checked: Checked) -> None:
    """A line for each finding that rejects its row."""
    artefact.write_bytes(path, b"".join(_lines(checked.rejects)))


def _lines(findings: Sequence[Finding]) -> Iterator[bytes]:
    for finding in findings:
        yield orjson.dumps(finding.as_dict()) + b"\n"


def _written(row: Row, finder: Pictures, folder: Path) -> dict[str, Any]:
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
    messages = [{"role": message.role, "content": _parts(message.text)} for message in conversation.messages]
    return {"id": conversation.id, "messages": messages, "images_file_names": [f"images/{name}" for name in conversation.images]}


def _parts(text: str) -> list[dict[str, str]]:
    """Text with markers, as chat templates take it: a part for each picture and each text between."""
    parts: list[dict[str, str]] = []
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


__all__ = ["convert", "write_rejects"]
