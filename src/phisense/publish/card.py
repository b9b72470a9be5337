"""Model cards that state only what the folder and the reports prove.

The front matter is huggingface_hub's `ModelCardData`; its `model-index` has each report's metrics
under the `real` condition. The card is parsed by huggingface_hub before it is written. The hub's
own validation needs the network: the library requests it before an upload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PhisenseError, UsageError
from ..evaluation.model_facts import read_model_facts
from ..evaluation.page.markup import format_number, metric_label
from ..evaluation.report import Report, read_report
from ..pipeline.json_fields import JsonObject
from .card_sections import (
    LIMITS_SECTION,
    evaluation_section,
    facts_section,
    merge_section,
    training_facts_section,
    usage_section,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: Tasks that the hub calls visual question answering: short answers about an image. The others have
#: free text or choices.
_VQA = (
    *("vqav2", "gqa", "textvqa", "textvqa-ocr", "pope"),
    *("docvqa", "chartqa", "ocrbench", "hallusionbench", "amber"),
)


@dataclass(frozen=True, slots=True)
class CardMetadata:
    """What no file states, so that the author must.

    Ids on the hub, a license id of the hub, and folders that `evaluate` wrote.
    """

    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    licence: str | None = None
    reports: tuple[Path, ...] = ()


def model_card(repo: str, folder: Path, about: JsonObject, metadata: CardMetadata) -> str:
    """README of the model `repo`: front matter, then the facts; `about` is the manifest's.

    Raises ArtifactError for an invalid report, UsageError for two reports on the same data.
    """
    from huggingface_hub import ModelCard, ModelCardData

    reports = [read_report(one) for one in metadata.reports]
    name = repo.split("/")[1]
    results = list(_results(reports))
    recorded = about.get("made_from")
    made_from = recorded if isinstance(recorded, list) else []
    data = ModelCardData(
        base_model=list(metadata.base_models or made_from) or None,
        datasets=list(metadata.datasets) or None,
        license=metadata.licence,
        library_name=(
            "transformers"
            if (folder / "config.json").is_file() and not any(folder.glob("*.gguf"))
            else "llama.cpp"
        ),
        pipeline_tag="image-text-to-text",
        tags=["phisense"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    facts = read_model_facts(folder)
    sections = [
        f"# {name}",
        *facts_section(folder, about, metadata.licence),
        *training_facts_section(facts),
        *merge_section(facts),
        *evaluation_section(reports),
        *usage_section(repo, folder),
        LIMITS_SECTION,
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    read_back: Any = ModelCard(str(card))
    if read_back.data.to_yaml() != data.to_yaml():
        raise PhisenseError(
            "the model card does not read back as it was written",
            got=f"{read_back.data.to_yaml()!r}"[:200],
            do="Write its texts more plainly",
        )
    return str(card)


def _results(reports: Sequence[Report]) -> Iterator[EvalResult]:
    """Metrics under the `real` condition for the model index, by task and data set."""
    from huggingface_hub import EvalResult

    seen: dict[tuple[str, str], Path | None] = {}
    for report in (report for report in reports if "real" in report.scores.conditions):
        task = report.scores.task
        config = ", ".join(one.name for one in report.about.data) or report.title
        if (task, config) in seen:
            raise UsageError(
                "two reports are about the same task and data, and the hub's index has one place"
                " for them",
                got=f"{seen[task, config]} and {report.folder}",
                do="Name one of them with --report",
            )
        seen[task, config] = report.folder
        for figure, found in report.scores.real.metrics.items():
            if math.isnan(found.value):
                continue
            yield EvalResult(
                task_type="visual-question-answering" if task in _VQA else "image-text-to-text",
                dataset_type=task,
                dataset_name=report.title,
                dataset_config=config,
                metric_type=figure,
                metric_name=(
                    f"{metric_label(figure)} (95 %: {format_number(found.low)} to"
                    f" {format_number(found.high)})"
                ),
                metric_value=round(found.value, 6),
            )


def check_hub_id(name: str, what: str) -> None:
    """Raise UsageError unless `name` is a valid hub id `user/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        good = name.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise UsageError(
            f"that is no name of {what} on the hub",
            got=name,
            wanted="USER/NAME, of letters, digits, '-', '_' and '.'",
        )
