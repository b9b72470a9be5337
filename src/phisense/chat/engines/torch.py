"""`torch`: a model folder, on the GPU or the CPU."""

from __future__ import annotations

from pathlib import Path

from ..engine import Engine
from .base import EngineKind, EngineOptions


def _open(folder: Path | None, options: EngineOptions) -> Engine:
    from ..torch_engine import TorchEngine

    assert folder is not None
    return TorchEngine.open(
        folder, options.device, options.picture_tokens, quantize=options.quantize
    )


ENGINE = EngineKind("torch", "model folder", _open, quantizes=True)
