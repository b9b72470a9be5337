"""Cost of each store format for a data set, measured on a sample of its images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save

from ...conversations import ImageFinder
from ...errors import ArtifactError
from ...pipeline.results import FeaturesPlan, StoreFormatPlan
from ..encoders.encode import Encoder
from ..image_io import open_image
from .formats import StoreFormat, bytes_per_image, pack_rows, unpack_rows

SAMPLED_IMAGES = 32
#: A store should leave space for checkpoints and the merged model.
MAX_DISK_SHARE = 0.5
FORMAT_NOTES: dict[StoreFormat, str] = {
    "float16": "exact",
    "int8": "errors under 0.5 % of a token's largest value",
    "pixels": "no features kept: resized pictures, encoded anew in every epoch",
}


def plan_store(
    encoder: Encoder, names: Sequence[str], images: ImageFinder, root: Path, *, batch: int
) -> FeaturesPlan:
    """Estimate size, write time and read time per epoch of each format, and recommend one.

    Measured on about `SAMPLED_IMAGES` of the images.
    """
    distinct = sorted(set(names))
    if not distinct:
        raise ArtifactError("there is nothing to plan", got="no picture in the recipe's data")
    some = distinct[:: -(-len(distinct) // SAMPLED_IMAGES)]
    started = time.monotonic()
    opened = [open_image(images.path(name), name=name) for name in some]
    open_seconds = (time.monotonic() - started) / len(some)
    started = time.monotonic()
    features = torch.cat(
        [encoder.encode(opened[i : i + batch]).cpu() for i in range(0, len(opened), batch)]
    )
    encode_seconds = (time.monotonic() - started) / len(some)
    started = time.monotonic()
    pixels = encoder.prepare(opened).cpu()
    prepare_seconds = (time.monotonic() - started) / len(some)
    each = {
        "float16": open_seconds + encode_seconds,
        "int8": open_seconds + encode_seconds,
        "pixels": open_seconds + prepare_seconds,
    }
    free = shutil.disk_usage(_existing(root)).free
    formats = []
    for format_, note in FORMAT_NOTES.items():
        stored = pixels if format_ == "pixels" else features
        read = _seconds_to_read(stored, format_) + (encode_seconds if format_ == "pixels" else 0.0)
        size = bytes_per_image(
            format_, tokens=encoder.patches, width=encoder.width, side=pixels.shape[-1]
        ) * len(distinct)
        formats.append(
            StoreFormatPlan(
                format=format_,
                note=note,
                bytes=size,
                encode_seconds=each[format_] * len(distinct),
                epoch_seconds=read * len(distinct),
            )
        )
    recommended, why = _recommend(formats, free)
    return FeaturesPlan(
        images=len(distinct),
        free_bytes=free,
        formats=tuple(formats),
        recommended=recommended,
        why=why,
    )


def _seconds_to_read(rows: torch.Tensor, format_: StoreFormat) -> float:
    """Seconds per image, from bytes in memory.

    The disk's share is excluded, since it depends on whether the store fits the page cache.
    """
    data = save(pack_rows(rows, format_))
    started = time.monotonic()
    unpack_rows(load(data), format_)
    return (time.monotonic() - started) / len(rows)


def _recommend(formats: Sequence[StoreFormatPlan], free: int) -> tuple[str, str]:
    """The name of the recommended format, and why."""
    for one, why in zip(
        formats,
        (
            "it is exact and fits",
            "float16 would take too much of the disk",
            "no store of features fits the disk",
        ),
        strict=True,
    ):
        if one.bytes <= MAX_DISK_SHARE * free:
            return one.format, why
    return "pixels", "it is the smallest, but the disk is too full for any; free some space"


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
