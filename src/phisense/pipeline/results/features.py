"""Results of encoding features, and of planning it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..json_fields import JsonObject
from ..records import Record, key, rest
from .base import FolderResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFormatPlan(Record):
    """Cost of one format of the feature store: bytes on disk, seconds to write it, and seconds to
    read it for one epoch.
    """

    format: str
    note: str
    bytes: int
    encode_seconds: float
    epoch_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesPlan(Record):
    """The cost of each format of the feature store for `images` distinct images, the recommended
    one, and `why`.
    """

    images: int = key("pictures")
    free_bytes: int
    formats: tuple[StoreFormatPlan, ...]
    recommended: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesResult(FolderResult):
    """A feature store after images were encoded into it.

    folder           the store
    images           how many of the recipe's images it contains, of which `distinct` differ
    stored           how many images it contains in all, including those of other recipes
    tokens, width    of each image: features `(tokens, width)`
    dtype            the format on disk: float16, int8, float32 or pixels
    computed_in      the number format that the encoder computed in
    encoder          a digest of `encoder_facts`, which identifies the store's encoder
    """

    PLACE: ClassVar[str] = "store"

    store_format: int
    encoder: str
    encoder_facts: Mapping[str, object] = key("facts")
    part: str | None
    dtype: str
    tokens: int
    width: int
    computed_in: str
    images: int = key("pictures")
    distinct: int
    names_digest: str = key("names")
    stored: int
    extra: JsonObject = rest()
