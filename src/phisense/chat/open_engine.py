"""Selects and opens the engine, by the folder's kind or the options."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import artifacts
from ..errors import UsageError
from ..opening import validate_folder
from ..opening.files import load_manifest
from .engine import Engine
from .engines.base import ENGINES, EngineOptions, ModelSource

_logger = logging.getLogger(__name__)

GGUF_KIND = "gguf folder"


def open_engine(
    folder: Path | None,
    *,
    engine: str = "auto",
    device: str = "auto",
    picture_tokens: int | None = None,
    quantize: bool = False,
    server: str | None = None,
    served_model: str | None = None,
) -> Engine:
    """Open the engine for a model folder, an exported GGUF folder, or the `server` at a URL; log
    which one.

    `engine` is "auto" or a name of `seams.ENGINE_MODULES`. With a server, the folder is only used
    to count tokens exactly; `served_model` selects one of several models there. Raises UsageError
    for incompatible options.
    """
    name = choose_engine(folder, engine, server)
    kind = ENGINES[name]
    if quantize and not kind.quantizes:
        able = " or ".join(one for one, its in ENGINES.items() if its.quantizes)
        raise UsageError(
            f"only the {able} engine quantises what it opens",
            got=f"the {name} engine",
            do="Leave out --quantize",
        )
    made = kind.open(folder, EngineOptions(device, picture_tokens, quantize, server, served_model))
    _logger.info("%s: %s", made.name, made.where)
    return made


def choose_engine(folder: Path | None, engine: str = "auto", server: str | None = None) -> str:
    """Select the engine without opening it; its name in `seams.ENGINE_MODULES`. Raises UsageError,
    or ArtifactError for a folder that is neither a model nor an export.
    """
    if engine != "auto" and engine not in ENGINES:
        *others, last = ("auto", *ENGINES)
        raise UsageError("unknown engine", got=engine, wanted=f"{', '.join(others)} or {last}")
    asked = None if engine == "auto" else ENGINES[engine]
    if server is not None or (asked is not None and asked.opens == "server"):
        if server is None:
            raise UsageError(
                f"the {engine} engine needs a server",
                do="Name its address with --server http://...",
            )
        if asked is not None and asked.opens != "server":
            raise UsageError(
                f"a server is asked by the {_first_for('server')} engine, not by {engine}",
                do="Leave out --engine or --server",
            )
        return _first_for("server") if asked is None else engine
    if folder is None:
        raise UsageError("there is no model to talk to", wanted="a model folder, or --server URL")
    found: ModelSource = "export" if is_exported(folder) else "model folder"
    if found == "model folder":
        artifacts.check_is_model(folder)
    validate_folder(folder)  # before torch or llama.cpp is imported
    if asked is None:
        return _first_for(found)
    if asked.opens != found:
        raise _cannot_open(asked.title, folder, found)
    return engine


def _first_for(source: ModelSource) -> str:
    """The engine that is chosen for a source if none is asked for."""
    return next(name for name, kind in ENGINES.items() if kind.opens == source)


def _cannot_open(title: str, folder: Path, found: ModelSource) -> UsageError:
    if found == "model folder":
        return UsageError(
            f"{title} cannot read {folder}",
            got="a model folder",
            do=f"Run phisense export {folder} and name what it writes",
        )
    return UsageError(
        f"{title} cannot run {folder}",
        got="files of llama.cpp",
        wanted="a model folder",
        do="Name the one it was exported from",
    )


def is_exported(folder: Path) -> bool:
    """Whether the folder was written by `phisense export`."""
    return (folder / artifacts.MANIFEST).is_file() and bool(load_manifest(folder).kind == GGUF_KIND)
