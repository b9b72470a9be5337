"""The sections of a model card: facts of the folder, training, merge, evaluations, use, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import artifacts
from ..evaluation.model_facts import ModelFacts
from ..evaluation.page.markup import (
    CONDITION_LABELS,
    NO_BETTER,
    format_number,
    format_signed,
    metric_label,
)
from ..evaluation.page.published import published_rows
from ..evaluation.page.training import MERGE_LABELS, training_duration
from ..evaluation.report import Report
from ..pipeline.json_fields import JsonObject


def facts_section(folder: Path, about: JsonObject, licence: str | None) -> list[str]:
    """What the model is, by its manifest, its configuration and its files."""
    rows = [f"* recipe: `{about['recipe']}`"] if about.get("recipe") else []
    if (folder / "config.json").is_file():
        config = artifacts.read_json(folder / "config.json")
        text, seen = config.get("text_config", {}), config.get("vision_config", {})
        rows.append(
            f"* class: `{', '.join(config.get('architectures', ['not recorded']))}`, in"
            f" {config.get('dtype', 'a dtype not recorded')}"
        )
        if text.get("num_hidden_layers"):
            rows.append(
                f"* language part: {text['num_hidden_layers']} layers of width"
                f" {text['hidden_size']}, {text['vocab_size']:,} tokens"
            )
        if seen.get("image_size"):
            rows.append(
                f"* vision part: {seen['image_size']}-pixel pictures in patches of"
                f" {seen['patch_size']}"
            )
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    rows.append(
        f"* weights: {sum(path.stat().st_size for path in weights) / 1e9:.2f} GB in {len(weights)}"
        f" file{'s' * (len(weights) != 1)}"
    )
    rows.append(f"* licence: {licence or 'not stated'}")
    opening = (
        "An assistant that answers questions about a picture, made with phisense: a text model, a"
        " projector and a vision tower."
    )
    return [opening, "\n".join(rows)]


def training_facts_section(facts: ModelFacts) -> list[str]:
    """The training section, if `merge` recorded the training."""
    if facts.stages is None:
        return []
    rows = [
        f"* seed {facts.seed}; the whole recipe is in `training.json`",
        f"* time: {training_duration(facts)}",
    ]
    rows += [] if facts.trainable is None else [f"* parameters trained: {facts.trainable:,}"]
    for part, told in facts.parts.items():
        rows += (
            [f"* {part}: {told['name']}"] if isinstance(told, Mapping) and "name" in told else []
        )
    for one in facts.data:
        count = "" if one.rows is None else f", {one.rows:,} conversations"
        rows.append(f"* data of stage {one.stage}: {_escape_markdown_name(one.name)}{count}")
    rows += [f"* {_VERDICT_SENTENCES[facts.looks.verdict]}"] if facts.looks else []
    head = [
        "| stage | conversations | steps | last loss | held-out accuracy |",
        "|---|---|---|---|---|",
    ]
    stages = [
        f"| {name} | {stage.samples:,} | {stage.steps:,} | {format_number(stage.last_loss)}"
        f" | {format_number(stage.held_out)} |"
        for name, stage in facts.stages.items()
    ]
    return ["## Training", "\n".join(rows), "\n".join([*head, *stages])]


_VERDICT_SENTENCES = {
    "looks": (
        "at its end it looked at its pictures: better with a question's picture than without, than"
        " with another's, and than each question's commonest answer"
    ),
    "blind": "at its end it could **not** be shown to look at its pictures",
    "too few": (
        "whether it looked at its pictures at its end cannot be told: too few held-out questions"
        " were asked"
    ),
}


def merge_section(facts: ModelFacts) -> list[str]:
    """What the merge changed, if it was measured."""
    report = facts.merge
    if report is None:
        return []
    rows = [
        "| weights | loss | against the reference | right → wrong | same answers |",
        "|---|---|---|---|---|",
    ]
    for key, meaning in MERGE_LABELS.items():
        if found := report.weights.get(key):
            rows.append(
                f"| {meaning} | {found.loss:.4f} | {found.delta_loss:+.4f} |"
                f" {'' if found.lost is None else f'{found.lost.value:.1%}'} |"
                f" {found.same_answers:.1%} |"
            )
    about = (
        f"Measured on {report.probes} held-out questions against {report.reference} (loss"
        f" {report.reference_loss:.4f})."
    )
    return ["## The merge", about, "\n".join(rows)]


def evaluation_section(reports: Sequence[Report]) -> list[str]:
    """All published evaluations, and how they were measured."""
    if not reports:
        return ["## Evaluation", "No evaluation was published with this model."]
    return [
        "## Evaluation",
        *(part for report in reports for part in _report_section(report)),
        _METHOD,
    ]


def _report_section(report: Report) -> list[str]:
    """Section of one evaluation: metrics under each condition with intervals, the verdict,
    published results, and the method.
    """
    scores = report.scores
    ran = list(scores.conditions)
    rows = [
        (
            f"| {scores.questions:,} questions |"
            f" {' | '.join(CONDITION_LABELS[name] for name in ran)} |"
        ),
        "|---|" + "---|" * len(ran),
    ]
    for figure in scores.metric_names():
        found = [scores.metric(condition, figure) for condition in ran]
        cells = [
            "–"
            if one is None
            else f"{format_number(one.value)} ({format_number(one.low)} to"
            f" {format_number(one.high)})"
            for one in found
        ]
        rows.append(f"| {metric_label(figure)} | {' | '.join(cells)} |")
    parts = [f"### {_escape_markdown_name(report.title)}", "\n".join(rows)]
    if looks := scores.looks:
        words = {
            "looks": "The model looks at the picture",
            "blind": NO_BETTER[looks.hardest],
            "too few": "There were too few questions to say whether the model looks",
        }[looks.verdict]
        told = [
            f"{format_signed(over.value)} over {CONDITION_LABELS[other]}"
            f" ({format_signed(over.low)} to"
            f" {format_signed(over.high)})"
            for other, over in looks.over.items()
        ]
        parts.append(f"{words}: {metric_label(looks.metric)} {', '.join(told)}, paired.")
    if others := published_rows(scores.task):
        rows = ["| published, not measured here | figure | value | source |", "|---|---|---|---|"]
        rows += [
            f"| {one.model} | {metric_label(one.figure)} | {format_number(one.value)} |"
            f" {one.source} |"
            for one in others
        ]
        parts.append("\n".join(rows))
    about = [
        (key, report.about.record.get(key))
        for key in ("engine", "device", "dtype", "seed", "max_new_tokens")
    ]
    told = [f"{key.replace('_', ' ')} {value}" for key, value in about if value is not None]
    data = [
        f"{_escape_markdown_name(one.name)} (sha256 {(one.sha256 or '–')[:12]})"
        for one in report.about.data
    ]
    return (
        [*parts, f"Measured with {', '.join(told)}{'; ' if data else ''}{', '.join(data)}."]
        if told
        else parts
    )


def _escape_markdown_name(name: str) -> str:
    """Escape Markdown in a name."""
    return "".join(
        f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in name.replace("\n", " ")
    )


_METHOD = (
    "Every interval is 95 %, from drawing the independent units anew (bootstrap). The same"
    " questions are asked with the picture, without it, and with another question's picture: a"
    " model whose figure does not fall without its picture does not look at it."
)


def usage_section(repo: str, folder: Path) -> list[str]:
    """How to use the model: with llama.cpp's files, or in transformers alone."""
    if any(folder.glob("*.gguf")):
        return [
            "## Use",
            (
                f"    hf download {repo} --local-dir model\n    phisense chat model --image"
                " picture.jpg"
            ),
        ]
    lines = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f'processor = AutoProcessor.from_pretrained("{repo}")',
        f'model = AutoModelForImageTextToText.from_pretrained("{repo}", device_map="auto")',
        (
            'content = [{"type": "image", "path": "picture.jpg"}, {"type": "text", "text": "What is'
            ' in the picture?"}]'
        ),
        'messages = [{"role": "user", "content": content}]',
        (
            'how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True,'
            ' "return_tensors": "pt"}'
        ),
        "inputs = processor.apply_chat_template(messages, **how)",
        "made = model.generate(**inputs.to(model.device))",
        (
            'print(processor.decode(made[0, inputs["input_ids"].shape[1] :],'
            " skip_special_tokens=True))"
        ),
    )
    return ["## Use", "It needs no phisense:", "```python\n" + "\n".join(lines) + "\n```"]


LIMITS_SECTION = (
    "## Limits\n\n"
    "* It can be wrong, and says so no differently from when it is right. Nobody should decide"
    " about people by it.\n"
    "* A conversation is about one picture and has the text model's window, at most 4,096 tokens;"
    " what does not fit is forgotten.\n"
    "* It was tested on what the tables above name and on nothing else; of other kinds of pictures"
    " and other languages nothing is known."
)
