"""`EncoderKind`: what is to be known of a kind of vision encoder, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ... import seams
from ...registry import Registry


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """A kind of vision encoder with a class in transformers.

    `model_class` imports and returns that class; its hidden states are `(N, R + P, D)`, with the P
    patches of a square image row by row after R `extra_rows`. `model_types` are the accepted model
    types of a configuration, which has `hidden_size`, `num_hidden_layers`, `image_size` and
    `patch_size`. `processors` and `image_processors` are the accepted class names of a processor
    for images and texts, and of one for images alone.

    A class with transformers' `interpolate_pos_encoding` can be given images of another size than
    its stored positions are for (`positions.py`).

    Stored weight names begin with `stored_prefix` in the encoder's own folder; in a published
    LLaVA folder they begin with `vision_tower.` and then `published_prefix`. `unused_weights` are
    the beginnings of names that an encoder's own folder may hold beside it, such as those of the
    text encoder it was trained with; any other weight without a place is an error.
    """

    model_class: Callable[[], Any]
    model_types: tuple[str, ...]
    extra_rows: Literal[0, 1]
    processors: tuple[str, ...] = ()
    image_processors: tuple[str, ...] = ()
    stored_prefix: str = ""
    published_prefix: str = ""
    unused_weights: tuple[str, ...] = ()

    @property
    def strategy(self) -> Literal["default", "full"]:
        """LLaVA's feature select strategy: `default` drops the class token, `full` does not."""
        return "default" if self.extra_rows else "full"


ENCODERS: Registry[EncoderKind] = Registry("encoder", "ENCODER", seams.ENCODER_MODULES)


def encoder_of(model_type: str) -> str | None:
    """The name in `ENCODERS` of the encoder with this model type; None if there is none."""
    return next((name for name, kind in ENCODERS.items() if model_type in kind.model_types), None)
