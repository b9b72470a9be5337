"""`EngineKind`: what an engine opens and how it is opened, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ... import seams
from ...registry import Registry
from ..engine import Engine

ModelSource = Literal["model folder", "export", "server"]
"""What an engine generates from: a folder of `phisense merge` or `phisense export`, or a server."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is opened; each engine reads those that concern it.

    `picture_tokens` is the number of image tokens, of those that a model of nested training serves;
    `quantize` holds the language model's weights in NF4; `served_model` is the model's name at the
    `server`, a URL.
    """

    device: str = "auto"
    picture_tokens: int | None = None
    quantize: bool = False
    server: str | None = None
    served_model: str | None = None


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A kind of engine: `title` is its name in messages, `opens` what it generates from.

    `open` gets the folder, which may be None for a server, and the options. It raises ArtifactError
    or PartError for a folder that cannot be opened, ChatError for a server that does not answer.
    """

    title: str
    opens: ModelSource
    open: Callable[[Path | None, EngineOptions], Engine]
    quantizes: bool = False


ENGINES: Registry[EngineKind] = Registry("engine", "ENGINE", seams.ENGINE_MODULES)
