"""Check a configuration against the headers of its weights: the model is built on the meta device,
where a weight has a shape but no memory.

Weight names differ between transformers versions and folder layouts; all are normalized to one
form:

    model.language_model.layers.0...    language_model.model.layers.0...    layers.0...
                                                                            (Phi-3 alone)
    vision_tower.vision_model.encoder   model.vision_tower.encoder          vision_model.encoder
                                                                            (tower alone)
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PartError, PhisenseError
from .headers import BUFFER_SUFFIXES, StoredTensor
from .registered import published_prefixes, stored_prefixes

TensorShape = tuple[int, ...]


def normalize_weight_name(name: str) -> str:
    """Weight name in the normalized form, in which names of different versions are compared."""
    for pattern, by in _name_rules(published_prefixes(), stored_prefixes()):
        name = pattern.sub(by, name)
    return name


@functools.cache
def _name_rules(
    published: tuple[str, ...], stored: tuple[str, ...]
) -> tuple[tuple[re.Pattern[str], str], ...]:
    """What is replaced by what, given the prefixes of the vision encoders' weights."""
    return (
        (re.compile(r"^(?:model\.)?language_model\.lm_head\."), "lm_head."),
        (re.compile(r"^(?:model\.)?language_model\.model\."), "language_model."),
        (re.compile(r"^model\."), ""),
        (re.compile(rf"^vision_tower\.(?:{any_of(published)})"), "vision_tower."),
        (re.compile(rf"^(?:{any_of(stored)})"), ""),
    )


def any_of(words: Sequence[str]) -> str:
    """Regular expression that matches one of `words`."""
    return "|".join(map(re.escape, words))


def build_meta_model(model_class: Any, config: Any, folder: Path) -> Any:
    """Build the model on the meta device.

    Raises PartError for a configuration from which no model can be built.
    """
    import torch

    try:
        config._attn_implementation = "sdpa"  # other names may be fetched from the hub
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # any type: any number in config.json may cause it
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PartError(
            f"the part {folder} cannot be loaded", got=said, do="Download the whole part again"
        ) from error


def check_stored_weights(
    folder: Path,
    model: Any,
    stored: Mapping[str, StoredTensor],
    *,
    unused: Sequence[str] = (),
) -> None:
    """Raise PartError unless every weight of `model` is stored with its shape, and nothing else is.

    `unused` are the beginnings of names that may be stored besides; recomputed buffers
    (`BUFFER_SUFFIXES`) always may.
    """
    found: dict[
        str, tuple[str, StoredTensor]
    ] = {}  # (name in the file, its header entry) by normalized name
    for name, one in stored.items():
        if not name.endswith(BUFFER_SUFFIXES) and not name.startswith(tuple(unused)):
            form = normalize_weight_name(name)
            if form in found:
                raise PartError(
                    f"{folder} holds a weight twice", got=f"{name[:200]} under two names"
                )
            if one.dtype == "I64":
                raise PartError(
                    f"the weights in {folder} are quantised",
                    got=f"{name[:200]} of I64",
                    wanted="float32, float16 or bfloat16",
                )
            found[form] = name, one
    tied = {
        normalize_weight_name(name) for name in getattr(model, "all_tied_weights_keys", None) or ()
    }
    wanted = {
        normalize_weight_name(name): tuple(weight.shape)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }
    both = sorted(wanted.keys() & found.keys())
    check_shapes(
        f"config.json of {folder} does not fit its weights",
        {
            found[form][0][:200]: (found[form][1].shape, f"in {found[form][1].file.name}")
            for form in both
        },
        {found[form][0][:200]: wanted[form] for form in both},
        wanted_by="as config.json says",
        do="Take config.json and the weights from one and the same model",
    )
    lacking = sorted(name for name in wanted.keys() - found.keys() if name not in tied)
    extra = sorted(found.keys() - wanted.keys())
    # A tower whose names transformers itself converts on loading (DINOv2): if the shapes match, the
    # loader maps the names or fails.
    spare = Counter(found[name][1].shape for name in extra)
    unplaced = [
        name
        for name in lacking
        if spare[wanted[name]] < sum(wanted[one] == wanted[name] for one in lacking)
    ]
    if unplaced:
        left = [
            form for form in extra if found[form][1].shape not in {wanted[name] for name in lacking}
        ]
        over = (
            f", and without a place {found[left[0]][0][:200]} of shape {found[left[0]][1].shape}"
            if left
            else ""
        )
        raise PartError(
            f"the part {folder} is incomplete",
            got=(
                f"{len(unplaced)} weights missing, such as {unplaced[0]} of shape"
                f" {wanted[unplaced[0]]}{over}"
            ),
            do=(
                "Download the whole part again"
                if not left
                else "Take config.json and the weights from one and the same model"
            ),
        )
    if len(extra) > len(lacking):
        raise PartError(
            f"{folder} holds weights that the model it describes has no place for",
            got=f"{len(extra) - len(lacking)}, such as {found[extra[0]][0][:200]}",
            wanted="each in its place",
            do="Take config.json and the weights from one and the same model",
        )


def check_shapes(
    what: str,
    got: Mapping[str, tuple[TensorShape, str]],
    wanted: Mapping[str, TensorShape],
    *,
    wanted_by: str,
    do: str,
    error_type: type[PhisenseError] = PartError,
) -> None:
    """Raise `error_type` unless `got` has the names and shapes of `wanted`.

    `got` maps a name to its shape and where it was found. The message names the first weight that
    differs, with both shapes and their origins; `wanted_by` is the origin of the wanted shape.
    """
    other = sorted(name for name in wanted.keys() & got.keys() if got[name][0] != wanted[name])
    missing, extra = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    more = len(other) + len(missing) + len(extra) - 1
    besides = f" ({more} more differ)" if more > 0 else ""
    if other:
        (shape, where), name = got[other[0]], other[0]
        raise error_type(
            what,
            got=f"{name} of shape {shape} {where}{besides}",
            wanted=f"shape {wanted[name]}, {wanted_by}",
            do=do,
        )
    if missing:
        raise error_type(
            what,
            got=f"no {missing[0]}{besides}",
            wanted=f"one of shape {wanted[missing[0]]}, {wanted_by}",
            do=do,
        )
    if extra:
        shape, where = got[extra[0]]
        raise error_type(
            what,
            got=f"{extra[0]} of shape {shape} {where}{besides}",
            wanted=f"no such weight, {wanted_by}",
            do=do,
        )
