"""The verb that takes what others' tools wrote: import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import DeviceName, Json, Overwrite, VerbResult, app
from .rendering import print_as_json, shown_by

if TYPE_CHECKING:
    from ..importing import GGUFImportReport, ImportReport


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help=(
            "A LLaVA-format folder with a Phi-3, a PEFT adapter to one, or a hub id of the first;"
            " or a .gguf file of a language model."
        ),
    ),
]
ImportedFolder = Annotated[
    Path | None,
    typer.Option(
        help=(
            "The folder to write; otherwise models/, or parts/ for a .gguf file, by the name of"
            " SOURCE."
        )
    ),
]
AdapterBase = Annotated[
    str | None,
    typer.Option(
        help="Of an adapter: what it was trained on, if it does not say or that is elsewhere."
    ),
]


@app.command("import")
def import_(
    source: Source,
    out: ImportedFolder = None,
    base: AdapterBase = None,
    overwrite: Overwrite = False,
    device: DeviceName = "auto",
    json: Json = False,
) -> VerbResult:
    """Take a LLaVA-format checkpoint as a model folder, or a GGUF file as a language part.

    Reads llava-hf's layout with a Phi-3, old and new names; xtuner's LLaVA-Phi-3-mini, whose Phi-3
    was rewritten as a Llama; and an adapter with its base. Every weight must have a place, and
    plain transformers on it must give the logits that the written folder gives, or nothing is
    written. Only safetensors are read. To go on training it, name it as `start` in a recipe
    (docs/others.md).

    Of a GGUF file, the part's tokenizer must give llama.cpp's ids on some hundreds of texts, and
    its logits must be llama.cpp's. Name the folder as `language.part` in a recipe (docs/llama.md).
    """
    from .. import console
    from ..importing import import_folder

    if Path(source).suffix == ".gguf":
        return _import_gguf(Path(source), out, base, overwrite=overwrite, json=json)
    folder = out or Path("models") / Path(source).expanduser().resolve().name
    with console.progress_bars() as bar:
        report = import_folder(
            source,
            folder,
            base=base,
            device=device,
            overwrite=overwrite,
            on_event=shown_by(bar),
        )
    if json:
        print_as_json(report)
    else:
        _print_import(report)
    return report


def _import_gguf(
    source: Path, out: Path | None, base: str | None, *, overwrite: bool, json: bool
) -> GGUFImportReport:
    """A language part from a GGUF file."""
    from .. import console
    from ..errors import UsageError
    from ..importing import import_gguf

    if base is not None:
        raise UsageError(f"{source} is no adapter, so it has no base", got=f"--base {base}")
    folder = out or Path("parts") / source.stem
    with console.progress_bars() as bar:
        report = import_gguf(source, folder, overwrite=overwrite, on_event=shown_by(bar))
    if json:
        print_as_json(report)
        return report
    types = ", ".join(f"{count} {kind}" for kind, count in report.tensor_types.items())
    console.out.print(
        f"{report.family}, tensors of {types}, kept in {report.dtype}. {report.texts} texts and"
        f" special tokens have llama.cpp's ids. {report.widened.positions} positions compared with"
        f" llama.cpp in float32: KL {report.widened.kl:.2g}, same likeliest token"
        f" {report.widened.top1:.2%}; with the file as it is, whose inputs llama.cpp rounds, KL"
        f" {report.as_stored.kl:.2g}, {report.as_stored.top1:.2%}"
    )
    console.out.print(f"language part -> {report.folder}")
    return report


def _print_import(report: ImportReport) -> None:
    """How far the written model agrees with its source, and what to be careful about."""
    from .. import console

    console.out.print(
        f"{report.positions} positions compared with the source: largest difference of a logit"
        f" {report.largest_difference:.2g} standard deviations, KL {report.kl:.2g}, same"
        f" likeliest token {report.top1:.2%}"
    )
    if (again := report.asked_again) is not None:
        console.out.print(
            f"When it was first asked it was {again.first_difference:.2g} off, and not when it"
            f" was asked again: the source answered {again.source_moved:.2g} otherwise, what was"
            f" written {again.written_moved:.2g}. Compare once more on a quiet machine.",
            style="yellow",
        )
    if report.prompt.same_ids is False:
        console.out.print(
            "The source has a chat template of its own that gives other ids; phisense asks by"
            " Phi-3's. Evaluate before you trust it.",
            style="yellow",
        )
    if report.prompt.refused is not None:
        console.out.print(f"{report.prompt.refused}. phisense asks by Phi-3's.", style="yellow")
    console.out.print(f"model -> {report.folder}")
