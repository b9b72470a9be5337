"""phisense: a small text model learns to see and hear, on one GPU, and proves at every step that it did."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Phi3WithProjector

try:
    __version__ = version("phisense")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+source"

__all__ = ["Phi3WithProjector", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports torch only for those who use the model, so that `phisense --help` stays instant."""
    if name == "Phi3WithProjector":
        from .model import Phi3WithProjector

        return Phi3WithProjector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
