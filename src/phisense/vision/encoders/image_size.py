"""The side, in pixels, of the square images that a vision part reads. This module alone decides it.

`vision.size` of the recipe decides; without it the part's preprocessor_config.json, which says what
the part is used at; where that says nothing, config.json, which says what the stored position
table is for. DINOv2 as published has a table for 518 pixels and is used at 224. The effective side
replaces `image_size` of the configuration, so whatever counts patches counts those of that side;
`positions.py` resizes the table to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

from ...errors import PartError

#: More of them are a mistake: 16,384 patches are sixteen times as many as any published encoder's.
MAX_PATCHES_A_SIDE = 128


def preprocessed_size(document: Mapping[str, object]) -> tuple[object, object] | None:
    """Height and width of the images that a preprocessor_config.json makes; None if it does not
    say.

    A crop comes last, so it counts before the size that is resized to. Without the key
    `do_center_crop` a `crop_size` is cropped to, as CLIP's and DINOv2's classes do.
    """
    if document.get("do_center_crop") is not False:
        cropped = _height_and_width(document.get("crop_size"))
        if cropped is not None or document.get("do_center_crop") is True:
            return cropped
    return None if document.get("do_resize") is False else _height_and_width(document.get("size"))


def _height_and_width(told: object) -> tuple[object, object] | None:
    """Both sides in a number, `{"height", "width"}` or `{"shortest_edge"}`, whose images are padded
    to squares here; None for anything else.
    """
    if not isinstance(told, dict):
        return None if told is None else (told, told)
    height, width = told.get("height"), told.get("width")
    if height is None and width is None:
        height = width = told.get("shortest_edge")
    return None if height is None and width is None else (height, width)


def effective_size(
    config: Any, document: Mapping[str, object], asked: int | None, part: str
) -> int:
    """The side of the images for an encoder with this configuration and preprocessor_config.json;
    `asked` is `vision.size`.

    A side that the part itself names is taken as it is: its own class leaves out the pixels of an
    incomplete patch. Raises PartError for another `asked` one that is no multiple of the patch, or
    out of bounds, naming sizes that can be taken; for images that are not square or smaller than a
    patch.
    """
    stored, patch = config.image_size, config.patch_size
    if type(stored) is not int or type(patch) is not int:
        raise PartError(
            f"the images or patches of {part} are not square",
            got=f"image_size {stored}, patch_size {patch}",
            wanted="whole numbers",
        )
    height, width = preprocessed_size(document) or (stored, stored)
    if asked is None:
        if height != width or type(height) is not int or height < patch:
            raise PartError(
                f"{part} prepares images that its encoder does not read",
                got=f"{height} x {width} pixels in preprocessor_config.json",
                wanted=f"as many pixels high as wide, and at least {patch}",
                do="Choose the side with vision.size",
            )
        return height
    most = MAX_PATCHES_A_SIDE * patch
    if asked in (stored, height) or (patch <= asked <= most and asked % patch == 0):
        return asked
    near = nearest_sizes(asked, patch)
    raise PartError(
        f"{part} cannot be given images of that size",
        got=f"vision.size {asked}, patches of {patch}",
        wanted=f"a multiple of {patch} up to {most:,}, such as {' or '.join(map(str, near))}",
        do="Set vision.size",
    )


def nearest_sizes(size: int, patch: int, divisors: Sequence[int] = ()) -> list[int]:
    """The sides next to `size`, at most one below and one above, that have whole patches, and a
    number of them that all `divisors` divide.
    """
    step = patch * lcm(*divisors)
    most = MAX_PATCHES_A_SIDE * patch // step * step
    below = min(size // step * step, most)
    return [one for one in (below, below + step) if 0 < one <= most]
