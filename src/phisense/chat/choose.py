"""Which engine talks: by what the folder holds, what the machine has, or what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .. import artefact, console
from ..errors import UsageError
from .engine import Engine

Which = Literal["auto", "torch", "llama", "remote"]
GGUF = "gguf folder"


def open_engine(
    folder: Path | None,
    *,
    engine: Which = "auto",
    device: str = "auto",
    picture_tokens: int | None = None,
    quantise: bool = False,
    server: str | None = None,
    served: str | None = None,
) -> Engine:
    """The engine for a model folder, for a folder that `phisense export` wrote, or for the `server` at a URL, and says which, once.

    With a server the folder only makes the counting of tokens exact; `served` is the model's name there, if it has several. Raises
    UsageError where what was asked for does not go together.
    """
    kind = choose(folder, engine, server)
    if quantise and kind != "torch":
        raise UsageError("only the torch engine quantises what it opens", got=f"the {kind} engine", do="Leave out --quantise")
    if kind == "remote":
        from .remote_engine import RemoteEngine

        assert server is not None
        made: Engine = RemoteEngine.open(server, model=served, folder=folder, picture_tokens=picture_tokens)
        where = "the server's answers"
    elif kind == "llama":
        from .llama_engine import LlamaEngine

        assert folder is not None
        made = LlamaEngine.open(folder, picture_tokens)
        where = "llama.cpp on the CPU"
    else:
        from .torch_engine import TorchEngine

        assert folder is not None
        torch_engine = made = TorchEngine.open(folder, device, picture_tokens, quantise=quantise)
        dtype = str(torch_engine.built.model.lm_head.weight.dtype).removeprefix("torch.")
        where = f"torch on {torch_engine.built.device}, {'NF4 and ' if quantise else ''}{dtype}"
    console.err.print(f"[dim]{made.name}: {where}[/dim]", highlight=False)
    return made


def choose(folder: Path | None, engine: Which = "auto", server: str | None = None) -> Literal["torch", "llama", "remote"]:
    """Without opening anything. Raises UsageError, or ArtefactError for a folder that is neither kind of model."""
    if server is not None or engine == "remote":
        if server is None:
            raise UsageError("the remote engine needs a server", do="Name its address with --server http://...")
        if engine not in ("auto", "remote"):
            raise UsageError(f"a server is asked by the remote engine, not by {engine}", do="Leave out --engine or --server")
        return "remote"
    if folder is None:
        raise UsageError("there is no model to talk to", wanted="a model folder, or --server URL")
    exported = is_exported(folder)
    if not exported:
        artefact.check_is_model(folder)
    if engine == "llama" and not exported:
        raise UsageError(
            f"llama.cpp cannot read {folder}", got="a model folder", do=f"Run phisense export {folder} and name what it writes"
        )
    if engine == "torch" and exported:
        raise UsageError(
            f"torch cannot run {folder}", got="files of llama.cpp", wanted="a model folder", do="Name the one it was exported from"
        )
    return "llama" if exported else "torch"


def is_exported(folder: Path) -> bool:
    """Whether `phisense export` wrote the folder."""
    return (folder / artefact.MANIFEST).is_file() and artefact.read_json(folder / artefact.MANIFEST).get("kind") == GGUF
