"""A model card: what the folder's own reports say of the model, and nothing that they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import artefact
from ..errors import UsageError

_MEANING = {"real": "with its picture", "blind": "without", "shuffled": "with another's"}
_MERGES = {"merged": "this model", "on_original": "onto the original base", "back_to_nf4": "back into 4 bits", "shuffled": "control"}


@dataclass(frozen=True, slots=True)
class Told:
    """What no file says, so that the maker must: ids on the hub, a licence as the hub writes it, folders that `evaluate` wrote."""

    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    licence: str | None = None
    reports: tuple[Path, ...] = ()


def model_card(repo: str, folder: Path, about: dict[str, Any], told: Told) -> str:
    """The README of the model `repo`: front matter that the hub reads, then the facts. `about` is what the folder's manifest says.

    Raises ArtefactError for a report that is none.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=list(told.base_models or about.get("made_from", ())) or None,
        datasets=list(told.datasets) or None,
        license=told.licence,
        library_name="transformers" if (folder / "config.json").is_file() and not any(folder.glob("*.gguf")) else "llama.cpp",
        pipeline_tag="image-text-to-text",
        tags=["phisense"],
    )
    sections = [
        f"# {repo.split('/')[1]}",
        *_facts(folder, about, told),
        *_merge(folder),
        *_reports(told.reports),
        *_use(repo, folder),
        _LIMITS,
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


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


def _merge(folder: Path) -> list[str]:
    path = folder / "merge_report.json"
    if not path.is_file():
        return []
    report = artefact.read_json(path)
    rows = ["| weights | loss | against the reference | same answers |", "|---|---|---|---|"]
    for key, meaning in _MERGES.items():
        if isinstance(found := report.get(key), dict):
            rows.append(f"| {meaning} | {found['loss']:.4f} | {found['delta_loss']:+.4f} | {found['same_answers']:.1%} |")
    about = f"Measured on {report['probes']} held-out questions against {report['reference']} (loss {report['reference_loss']:.4f})."
    return ["## The merge", about, "\n".join(rows)]


def _reports(folders: Sequence[Path]) -> list[str]:
    if not folders:
        return ["## Evaluation", "No evaluation was published with this model."]
    sections = ["## Evaluation"]
    for folder in folders:
        title = artefact.read_manifest(folder, kind="report").get("title") or folder.name
        scores = artefact.read_json(folder / "scores.json")
        rows = ["| the question is asked | accuracy | 95 % | questions |", "|---|---|---|---|"]
        for condition, meaning in _MEANING.items():
            if condition in scores:
                found = scores[condition]["figures"][scores["headline"]]
                rows.append(f"| {meaning} | {found['value']:.3f} | {found['low']:.3f} to {found['high']:.3f} | {scores['questions']:,} |")
        sections += [f"### {title}", "\n".join(rows)]
    return sections


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
