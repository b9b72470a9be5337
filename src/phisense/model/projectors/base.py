"""`ProjectorKind`: what a recipe's `projector.kind` stands for, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ... import seams
from ...errors import PartError
from ...registry import Registry


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A class of transformers that joins a vision encoder, a projector and a language model.

    `model_class` imports and returns it; `model_type` is that of its configuration, from which
    `merged_side` reads the side of the squares of patches that its projector merges into one image
    token. `own_keys` are the keys of its configuration that stored projector weights depend on,
    each with what to do about another value.
    """

    model_type: str
    model_class: Callable[[], Any]
    merged_side: Callable[[Any], int] = lambda config: 1
    own_keys: Mapping[str, str] = field(default_factory=dict)


class ProjectorKind(Protocol):
    """A kind of projector: the projector module of a native model, and how it is initialized."""

    @property
    def natives(self) -> Sequence[NativeModel]:
        """The native models that hold such projectors."""
        ...

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        """Why a recipe's `pool` and `nested` do not go with this kind; None if they do."""

    def native(self, pool: int) -> NativeModel:
        """The native model that merges `pool` x `pool` patches into an image token."""
        ...

    def keys(self, pool: int, patches: int, hidden: int) -> Mapping[str, Any]:
        """Keys of the native configuration besides those that every one has, for `patches` an
        image and a language model `hidden` wide.
        """
        ...

    def initialize(self, projector: Any, config: Any) -> None:
        """Draw the weights of a native projector module, in place, from torch's generator."""


PROJECTORS: Registry[ProjectorKind] = Registry("projector", "PROJECTOR", seams.PROJECTOR_MODULES)


def native_model(config: Any) -> NativeModel:
    """The native model that a configuration belongs to. Raises PartError if no projector has it."""
    known = {native.model_type: native for kind in PROJECTORS.values() for native in kind.natives}
    if config.model_type not in known:
        raise PartError(
            "no projector belongs to such a model",
            got=config.model_type,
            wanted=" or ".join(known),
        )
    return known[config.model_type]


def nested_refusal(pool: int, nested: Sequence[int]) -> str | None:
    """Why averaging over several sides of squares does not go with `pool`; None if it does."""
    if nested and (pool > 1 or 1 not in nested):
        return "nested goes with pool 1 and must hold 1, since that is what native consumers read"
    return None
