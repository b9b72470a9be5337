"""Model assembly, 4-bit loading, LoRA, and the on-disk model folder.

The names are imported on first use: a module of this package that says what a projector or a
language family is, such as `projectors/mlp.py`, is read by the recipe, which needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import Phi3WithProjector
    from .folder import load_model, save_model
    from .inputs import ModelInputs, StoredFeatures, pad_rows
    from .projectors.image_tokens import count_image_tokens

#: Public name -> the module that defines it.
_PUBLIC = {
    "ModelInputs": ".inputs",
    "Phi3WithProjector": ".assembly",
    "StoredFeatures": ".inputs",
    "count_image_tokens": ".projectors.image_tokens",
    "load_model": ".folder",
    "pad_rows": ".inputs",
    "save_model": ".folder",
}

__all__ = [
    "ModelInputs",
    "Phi3WithProjector",
    "StoredFeatures",
    "count_image_tokens",
    "load_model",
    "pad_rows",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)
