"""Selects and opens the engine, by the folder's kind or the options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

from .. import artifacts
from ..errors import UsageError
from ..opening import validate_folder
from ..opening.files import load_manifest
from .engine import Engine

_logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "llama", "remote"]
GGUF_KIND = "gguf folder"


def open_engine(
    folder: Path | None,
    *,
    engine: EngineName = "auto",
    device: str = "auto",
    picture_tokens: int | None = None,
    quantize: bool = False,
    server: str | None = None,
    served_model: str | None = None,
) -> Engine:
    """Open the engine for a model folder, an exported GGUF folder, or the `server` at a URL; log
    which one.

    With a server, the folder is only used to count tokens exactly; `served_model` selects one of
    several models there. Raises UsageError for incompatible options.
    """
    kind = choose_engine(folder, engine, server)
    if quantize and kind != "torch":
        raise UsageError(
            "only the torch engine quantises what it opens",
            got=f"the {kind} engine",
            do="Leave out --quantize",
        )
    if kind == "remote":
        from .remote_engine import RemoteEngine

        assert server is not None
        made: Engine = RemoteEngine.open(
            server, model=served_model, folder=folder, picture_tokens=picture_tokens
        )
        where = "the server's answers"
    elif kind == "llama":
        from .llama_engine import LlamaEngine

        assert folder is not None
        made = LlamaEngine.open(folder, picture_tokens)
        where = "llama.cpp on the CPU"
    else:
        from .torch_engine import TorchEngine

        assert folder is not None
        torch_engine = made = TorchEngine.open(folder, device, picture_tokens, quantize=quantize)
        dtype = str(torch_engine.built.model.lm_head.weight.dtype).removeprefix("torch.")
        where = f"torch on {torch_engine.built.device}, {'NF4 and ' if quantize else ''}{dtype}"
    _logger.info("%s: %s", made.name, where)
    return made


def choose_engine(
    folder: Path | None, engine: EngineName = "auto", server: str | None = None
) -> Literal["torch", "llama", "remote"]:
    """Select the engine without opening it. Raises UsageError, or ArtifactError for a folder that
    is neither a model nor an export.
    """
    if engine not in get_args(EngineName):
        raise UsageError("unknown engine", got=engine, wanted="auto, torch, llama or remote")
    if server is not None or engine == "remote":
        if server is None:
            raise UsageError(
                "the remote engine needs a server", do="Name its address with --server http://..."
            )
        if engine not in ("auto", "remote"):
            raise UsageError(
                f"a server is asked by the remote engine, not by {engine}",
                do="Leave out --engine or --server",
            )
        return "remote"
    if folder is None:
        raise UsageError("there is no model to talk to", wanted="a model folder, or --server URL")
    exported = is_exported(folder)
    if not exported:
        artifacts.check_is_model(folder)
    validate_folder(folder)  # before torch or llama.cpp is imported
    if engine == "llama" and not exported:
        raise UsageError(
            f"llama.cpp cannot read {folder}",
            got="a model folder",
            do=f"Run phisense export {folder} and name what it writes",
        )
    if engine == "torch" and exported:
        raise UsageError(
            f"torch cannot run {folder}",
            got="files of llama.cpp",
            wanted="a model folder",
            do="Name the one it was exported from",
        )
    return "llama" if exported else "torch"


def is_exported(folder: Path) -> bool:
    """Whether the folder was written by `phisense export`."""
    return (folder / artifacts.MANIFEST).is_file() and bool(load_manifest(folder).kind == GGUF_KIND)
