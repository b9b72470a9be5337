"""What the registered encoders and projectors say of the folders that hold them.

They live in rooms above this one, so what is asked of them is stated here; they are found by the
names in `seams.py`, and the modules named there import neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from .. import seams
from ..registry import Registry


class _Encoder(Protocol):
    """What opening asks of `vision/encoders/base.py: EncoderKind`."""

    @property
    def model_types(self) -> Sequence[str]: ...
    @property
    def processors(self) -> Sequence[str]: ...
    @property
    def image_processors(self) -> Sequence[str]: ...
    @property
    def stored_prefix(self) -> str: ...
    @property
    def published_prefix(self) -> str: ...
    @property
    def unused_weights(self) -> Sequence[str]: ...


class _NativeModel(Protocol):
    """What opening asks of `model/projectors/base.py: NativeModel`."""

    @property
    def model_type(self) -> str: ...


class _Projector(Protocol):
    """What opening asks of `model/projectors/base.py: ProjectorKind`."""

    @property
    def natives(self) -> Sequence[_NativeModel]: ...


_ENCODERS: Registry[_Encoder] = Registry("encoder", "ENCODER", seams.ENCODER_MODULES)
_PROJECTORS: Registry[_Projector] = Registry("projector", "PROJECTOR", seams.PROJECTOR_MODULES)


def composite_model_types() -> tuple[str, ...]:
    """The model types of complete models: vision encoder, projector and language model."""
    return _distinct(one.model_type for kind in _PROJECTORS.values() for one in kind.natives)


def vision_model_types() -> tuple[str, ...]:
    """The model types of vision encoders."""
    return tuple(name for kind in _ENCODERS.values() for name in kind.model_types)


def processors() -> tuple[str, ...]:
    """The processor classes, for images and texts, that vision encoders' folders may name."""
    return tuple(name for kind in _ENCODERS.values() for name in kind.processors)


def image_processors() -> tuple[str, ...]:
    """The image processor classes that vision encoders' folders may name."""
    return tuple(name for kind in _ENCODERS.values() for name in kind.image_processors)


def stored_prefixes() -> tuple[str, ...]:
    """What the weight names of a vision encoder may begin with in a folder of its own."""
    return _distinct(kind.stored_prefix for kind in _ENCODERS.values())


def unused_weights(model_type: str) -> tuple[str, ...]:
    """What the names of weights may begin with that a folder of this model type holds beside its
    vision encoder.
    """
    kinds = (kind for kind in _ENCODERS.values() if model_type in kind.model_types)
    return _distinct(name for kind in kinds for name in kind.unused_weights)


def published_prefixes() -> tuple[str, ...]:
    """What the weight names of a vision encoder may have after `vision_tower.` in a LLaVA
    folder.
    """
    return _distinct(kind.published_prefix for kind in _ENCODERS.values())


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))
