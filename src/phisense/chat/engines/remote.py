"""`remote`: a server that speaks OpenAI's chat protocol; a folder is only used to count tokens."""

from __future__ import annotations

from pathlib import Path

from ..engine import Engine
from .base import EngineKind, EngineOptions


def _open(folder: Path | None, options: EngineOptions) -> Engine:
    from ..remote_engine import RemoteEngine

    assert options.server is not None
    return RemoteEngine.open(
        options.server,
        model=options.served_model,
        folder=folder,
        picture_tokens=options.picture_tokens,
    )


ENGINE = EngineKind("the server", "server", _open)
