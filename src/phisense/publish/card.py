"""A model card: what the folder and the reports say of the model, and nothing that they do not.

The front matter is huggingface_hub's `ModelCardData`, its `model-index` made of each report's figures with the real picture. The card is
read back by huggingface_hub before it is written. The hub's own check needs the network: the library asks for it before an upload.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import artefact
from ..errors import UsageError
from ..evaluation.facts import facts_of
from ..evaluation.page.figures import published
from ..evaluation.page.training import MERGES, hours_of
from ..evaluation.page.words import CONDITION, name_of, number, signed
from ..evaluation.report import Report, read

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: Tasks whose answers are a word about a picture, which the hub calls so; the others are texts or choices.
_VQA = ("vqav2", "gqa", "textvqa", "textvqa-ocr", "pope")


@dataclass(frozen=True, slots=True)
class Told:
    """What no file says, so that the maker must: ids on the hub, a licence as the hub writes it, folders that `evaluate` wrote."""

    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    licence: str | None = None
    reports: tuple[Path, ...] = ()


def model_card(repo: str, folder: Path, about: dict[str, Any], told: Told) -> str:
    """The README of the model `repo`: front matter that the hub reads, then the facts. `about` is what the folder's manifest says.

    Raises ArtefactError for a report that is none, UsageError for two about the same.
    """
    from huggingface_hub import ModelCard, ModelCardData

    reports = [read(one) for one in told.reports]
    name = repo.split("/")[1]
    results = list(_results(reports))
    data = ModelCardData(
        base_model=list(told.base_models or about.get("made_from", ())) or None,
        datasets=list(told.datasets) or None,
        license=told.licence,
        library_name="transformers" if (folder / "config.json").is_file() and not any(folder.glob("*.gguf")) else "llama.cpp",
        pipeline_tag="image-text-to-text",
        tags=["phisense"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    facts = facts_of(folder)
    sections = [
        f"# {name}",
        *_facts(folder, about, told),
        *_training(facts),
        *_merge(facts),
        *_evaluation(reports),
        *_use(repo, folder),
        _LIMITS,
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    read_back: Any = ModelCard(str(card))
    assert read_back.data.to_yaml() == data.to_yaml(), "the card does not read back as it was written"
    return str(card)


def _results(reports: Sequence[Report]) -> Iterator[EvalResult]:
    """Every figure with the real picture, as the hub's index has them: one entry for each task and its data."""
    from huggingface_hub import EvalResult

    seen: dict[tuple[str, str], Path | None] = {}
    for report in (report for report in reports if "real" in report.scores):
        task, config = report.scores["task"], ", ".join(one["name"] for one in report.about.get("data") or [{"name": report.title}])
        if (task, config) in seen:
            raise UsageError(
                "two reports are about the same task and data, and the hub's index has one place for them",
                got=f"{seen[task, config]} and {report.folder}",
                do="Name one of them with --report",
            )
        seen[task, config] = report.folder
        for figure, found in report.scores["real"]["figures"].items():
            if found["value"] is None:
                continue
            yield EvalResult(
                task_type="visual-question-answering" if task in _VQA else "image-text-to-text",
                dataset_type=task,
                dataset_name=report.title,
                dataset_config=config,
                metric_type=figure,
                metric_name=f"{name_of(figure)} (95 %: {number(found['low'])} to {number(found['high'])})",
                metric_value=round(found["value"], 6),
            )


def check_id(name: str, called: str) -> None:
    """Raises UsageError unless `name` is `user/name` as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        good = name.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise UsageError(f"that is no name of {called} on the hub", got=name, wanted="USER/NAME, of letters, digits, '-', '_' and '.'")


def _facts(folder: Path, about: dict[str, Any], told: Told) -> list[str]:
    rows = [f"* recipe: `{about['recipe']}`"] if about.get("recipe") else []
    if (folder / "config.json").is_file():
        config = artefact.read_json(folder / "config.json")
        text, seen = config.get("text_config", {}), config.get("vision_config", {})
        rows.append(
            f"* class: `{', '.join(config.get('architectures', ['not recorded']))}`, in {config.get('dtype', 'a dtype not recorded')}"
        )
        if text.get("num_hidden_layers"):
            rows.append(
                f"* language part: {text['num_hidden_layers']} layers of width {text['hidden_size']}, {text['vocab_size']:,} tokens"
            )
        if seen.get("image_size"):
            rows.append(f"* vision part: {seen['image_size']}-pixel pictures in patches of {seen['patch_size']}")
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    rows.append(f"* weights: {sum(path.stat().st_size for path in weights) / 1e9:.2f} GB in {len(weights)} file{'s' * (len(weights) != 1)}")
    rows.append(f"* licence: {told.licence or 'not stated'}")
    opening = "An assistant that answers questions about a picture, made with phisense: a text model, a projector and a vision tower."
    return [opening, "\n".join(rows)]


def _training(facts: dict[str, Any]) -> list[str]:
    """How it was trained, if `merge` wrote that down."""
    if "stages" not in facts:
        return []
    rows = [f"* seed {facts['recipe']['seed']}; the whole recipe is in `training.json`", f"* time: {hours_of(facts)}"]
    rows += [f"* parameters trained: {facts['trainable']:,}"] if "trainable" in facts else []
    for part, told in facts.get("parts", {}).items():
        rows += [f"* {part}: {told['name']}"] if isinstance(told, dict) and "name" in told else []
    for one in facts.get("data", ()):
        count = f", {one['rows']:,} conversations" if "rows" in one else ""
        rows.append(f"* data of stage {one['stage']}: {_plain(one['name'])}{count}")
    rows += [f"* {_LOOKED[facts['looks']['verdict']]}"] if "looks" in facts else []
    head = ["| stage | conversations | steps | last loss | held-out accuracy |", "|---|---|---|---|---|"]
    stages = [
        f"| {name} | {stage['samples']:,} | {stage['steps']:,} | {_or_dash(stage.get('last_loss'))} | {_or_dash(stage.get('held_out'))} |"
        for name, stage in facts["stages"].items()
    ]
    return ["## Training", "\n".join(rows), "\n".join([*head, *stages])]


_LOOKED = {
    "looks": "at its end it looked at its pictures: better with a question's picture than without and than with another's",
    "blind": "at its end it could **not** be shown to look at its pictures",
    "too few": "whether it looked at its pictures at its end cannot be told: too few held-out questions were asked",
}


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _merge(facts: dict[str, Any]) -> list[str]:
    report = facts.get("merge")
    if not report:
        return []
    rows = ["| weights | loss | against the reference | same answers |", "|---|---|---|---|"]
    for key, meaning in MERGES.items():
        if isinstance(found := report.get(key), dict):
            rows.append(f"| {meaning} | {found['loss']:.4f} | {found['delta_loss']:+.4f} | {found['same_answers']:.1%} |")
    about = f"Measured on {report['probes']} held-out questions against {report['reference']} (loss {report['reference_loss']:.4f})."
    return ["## The merge", about, "\n".join(rows)]


def _evaluation(reports: Sequence[Report]) -> list[str]:
    if not reports:
        return ["## Evaluation", "No evaluation was published with this model."]
    return ["## Evaluation", *(part for report in reports for part in _report(report)), _HOW]


def _report(report: Report) -> list[str]:
    """One evaluation: every figure under each condition with its interval, the verdict, published figures, how it was measured."""
    scores = report.scores
    ran = [name for name in CONDITION if name in scores]
    names = list(dict.fromkeys(figure for condition in ran for figure in scores[condition]["figures"]))
    rows = [f"| {scores['questions']:,} questions | {' | '.join(CONDITION[name] for name in ran)} |", "|---|" + "---|" * len(ran)]
    for figure in names:
        found = [scores[condition]["figures"].get(figure) for condition in ran]
        cells = ["–" if one is None else f"{number(one['value'])} ({number(one['low'])} to {number(one['high'])})" for one in found]
        rows.append(f"| {name_of(figure)} | {' | '.join(cells)} |")
    parts = [f"### {_plain(report.title)}", "\n".join(rows)]
    if looks := scores.get("looks"):
        words = {"looks": "The model looks at the picture", "blind": "The model is blind: the picture does not help it"}.get(
            looks["verdict"], "There were too few questions to say whether the model looks"
        )
        told = [
            f"{signed(over['value'])} over {CONDITION[other]} ({signed(over['low'])} to {signed(over['high'])})"
            for other, over in looks["over"].items()
        ]
        parts.append(f"{words}: {name_of(looks['figure'])} {', '.join(told)}, paired.")
    if others := published(scores["task"]):
        rows = ["| published, not measured here | figure | value | source |", "|---|---|---|---|"]
        rows += [f"| {one.model} | {name_of(one.figure)} | {number(one.value)} | {one.source} |" for one in others]
        parts.append("\n".join(rows))
    about = [(key, report.about.get(key)) for key in ("engine", "device", "dtype", "seed", "max_new_tokens")]
    told = [f"{key.replace('_', ' ')} {value}" for key, value in about if value is not None]
    data = [f"{_plain(one['name'])} (sha256 {str(one.get('sha256', '–'))[:12]})" for one in report.about.get("data", ())]
    return [*parts, f"Measured with {', '.join(told)}{'; ' if data else ''}{', '.join(data)}."] if told else parts


def _plain(name: str) -> str:
    """A name that is no Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in name.replace("\n", " "))


_HOW = (
    "Every interval is 95 %, from drawing the independent units anew (bootstrap). The same questions are asked with the picture, without "
    "it, and with another question's picture: a model whose figure does not fall without its picture does not look at it."
)


def _use(repo: str, folder: Path) -> list[str]:
    if any(folder.glob("*.gguf")):
        return ["## Use", f"    hf download {repo} --local-dir model\n    phisense chat model --image picture.jpg"]
    lines = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f'processor = AutoProcessor.from_pretrained("{repo}")',
        f'model = AutoModelForImageTextToText.from_pretrained("{repo}", device_map="auto")',
        'content = [{"type": "image", "path": "picture.jpg"}, {"type": "text", "text": "What is in the picture?"}]',
        'messages = [{"role": "user", "content": content}]',
        'how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}',
        "inputs = processor.apply_chat_template(messages, **how)",
        "made = model.generate(**inputs.to(model.device))",
        'print(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    )
    return ["## Use", "It needs no phisense:", "```python\n" + "\n".join(lines) + "\n```"]


_LIMITS = """## Limits

* It can be wrong, and says so no differently from when it is right. Nobody should decide about people by it.
* A conversation is about one picture and has the text model's window, at most 4,096 tokens; what does not fit is forgotten.
* It was tested on what the tables above name and on nothing else; of other kinds of pictures and other languages nothing is known."""
