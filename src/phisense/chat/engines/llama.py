"""`llama`: an exported folder, in llama.cpp on the CPU."""

from __future__ import annotations

from pathlib import Path

from ..engine import Engine
from .base import EngineKind, EngineOptions


def _open(folder: Path | None, options: EngineOptions) -> Engine:
    from ..llama_engine import LlamaEngine

    assert folder is not None
    return LlamaEngine.open(folder, options.picture_tokens)


ENGINE = EngineKind("llama.cpp", "export", _open)
