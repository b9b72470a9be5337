"""What each format of the store would cost for a data set, measured on some of its pictures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from ...conversations import Pictures
from ...errors import ArtefactError
from ..encoders import Encoder
from ..pictures import open_picture
from .formats import Format, bytes_each, pack, unpack

SAMPLE = 32
#: A store should leave room for checkpoints and the merged model.
SHARE_OF_DISK = 0.5
NOTES: dict[Format, str] = {
    "float16": "exact",
    "int8": "errors under 0.5 % of a token's largest value",
    "pixels": "no features kept: resized pictures, encoded anew in every epoch",
}


def plan(encoder: Encoder, names: Sequence[str], images: Pictures, root: Path, *, batch: int) -> dict[str, Any]:
    """Bytes, seconds to write and seconds of reading in an epoch for each format, by `SAMPLE` of the pictures; and which to take."""
    distinct = sorted(set(names))
    if not distinct:
        raise ArtefactError("there is nothing to plan", got="no picture in the recipe's data")
    some = distinct[:: -(-len(distinct) // SAMPLE)]
    started = time.monotonic()
    opened = [open_picture(images.path(name), name=name) for name in some]
    open_seconds = (time.monotonic() - started) / len(some)
    started = time.monotonic()
    features = torch.cat([encoder.encode(opened[i : i + batch]).cpu() for i in range(0, len(opened), batch)])
    encode_seconds = (time.monotonic() - started) / len(some)
    started = time.monotonic()
    pixels = encoder.prepare(opened).cpu()
    prepare_seconds = (time.monotonic() - started) / len(some)
    each = {"float16": open_seconds + encode_seconds, "int8": open_seconds + encode_seconds, "pixels": open_seconds + prepare_seconds}
    free = shutil.disk_usage(_existing(root)).free
    formats = []
    for format_, note in NOTES.items():
        stored = pixels if format_ == "pixels" else features
        read = _seconds_to_read(stored, format_) + (encode_seconds if format_ == "pixels" else 0.0)
        size = bytes_each(format_, tokens=encoder.patches, width=encoder.width, side=pixels.shape[-1]) * len(distinct)
        formats.append({
            "format": format_, "note": note, "bytes": size,
            "encode_seconds": each[format_] * len(distinct), "epoch_seconds": read * len(distinct),
        })  # fmt: skip
    return {"pictures": len(distinct), "free_bytes": free, "formats": formats, **_recommend(formats, free)}


def _seconds_to_read(rows: torch.Tensor, format_: Format) -> float:
    """For one picture, from bytes in memory: what the disk adds depends on whether the store fits the page cache."""
    data = save(pack(rows, format_))
    started = time.monotonic()
    unpack(load(data), format_)
    return (time.monotonic() - started) / len(rows)


def _recommend(formats: list[dict[str, Any]], free: int) -> dict[str, str]:
    for one, why in zip(
        formats, ("it is exact and fits", "float16 would take too much of the disk", "no store of features fits the disk"), strict=True
    ):
        if one["bytes"] <= SHARE_OF_DISK * free:
            return {"recommended": one["format"], "why": why}
    return {"recommended": "pixels", "why": "it is the smallest, but the disk is too full for any; free some space"}


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
