"""The steps that judge a trained run: merge, evaluation beside what needs no image, 4 bits, and
llama.cpp's files.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import phisense

from . import packages, probes
from .training import recipe_of
from .walk import Figures, Finished, Walk

#: Questions on which a file of llama.cpp is compared with its model.
EXPORTED_QUESTIONS = 64
#: Questions asked, and of those asked without an image and with another, where there are thousands.
ASKED_QUESTIONS, CONDITIONED_QUESTIONS = 2000, 900


def merge(name: str, walk: Walk) -> Figures:
    """Merge, and compare the saved head with the part's, bit for bit."""
    recipe = recipe_of(walk, name)
    found = phisense.merge(recipe.run, overwrite=recipe.model.exists(), on_event=print)
    return {
        "delta_loss": found.merged.delta_loss,
        "same_answers": found.merged.same_answers,
        "head": compare_heads(
            Path(recipe.path(Path(recipe.language.part))), recipe.run, found.folder
        ),
    }


def compare_heads(part: Path, run: Path, model: Path) -> str:
    """Whether the output matrix of a model folder is the part's as the run computed with it:
    "equal", "differs" or "absent"; a tied head is the embedding.
    """
    import torch

    ours, theirs = _head(part), _head(model)
    if ours is None or theirs is None:
        return "absent"
    computed = json.loads((run / "train.json").read_text())["arithmetic"]["format"]
    held = ours.to(getattr(torch, computed)).to(theirs.dtype)
    return "equal" if torch.equal(held, theirs) else "differs"


def _head(folder: Path) -> Any:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    tied = config.get("text_config", config).get("tie_word_embeddings")
    if tied is None:
        tied = config.get("tie_word_embeddings", False)
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                    weights[name.rpartition("weight")[0].split(".")[-2]] = file.get_tensor(name)
    return weights.get("lm_head", weights.get("embed_tokens") if tied else None)


def evaluate(name: str, walk: Walk, *, merged: bool = True) -> Figures:
    """The merged model, or the run with its adapter, with each question's image, without it and
    with another's, and the constant beside it.
    """
    recipe = recipe_of(walk, name)
    held_out = recipe.path(recipe.data.held_out[0])
    questions = probes.short_questions(held_out)
    asked = partial(ask, walk, recipe, data=held_out, model=recipe.model if merged else recipe.run)
    if len(questions) > CONDITIONED_QUESTIONS:
        real = asked(f"{name}-real", conditions=("real",), limit=ASKED_QUESTIONS)
        report = asked(f"{name}-conditions", limit=CONDITIONED_QUESTIONS)
    else:
        real = report = asked(f"{name}-conditions")
    assert report.looks is not None, "all conditions were evaluated"
    return {
        "questions": min(len(questions), ASKED_QUESTIONS),
        "accuracy": real.real.accuracy.value,
        "blind": report.blind.accuracy.value,
        "shuffled": report.shuffled.accuracy.value,
        "constant": report.constant.accuracy.value,
        **{f"over_{name}": one.to_dict() for name, one in report.looks.over.items()},
        "verdict": report.verdict,
    }


def count_lost(walk: Walk) -> Figures:
    """Right answers of the run, with its adapter, that the merged folder answers wrongly, of all
    held-out questions.
    """
    recipe = recipe_of(walk, "photographs")
    held_out = recipe.path(recipe.data.held_out[0])
    trained = ask(
        walk, recipe, "photographs-run", data=held_out, model=recipe.run, conditions=("real",)
    )
    before = _credits(trained.folder)
    after = _credits(walk.folder / "reports" / "photographs-conditions")
    return {
        "accuracy": trained.real.accuracy.value,
        "lost": sum(before[one] >= 0.5 > after[one] for one in before) / len(before),
        "gained": sum(after[one] >= 0.5 > before[one] for one in before) / len(before),
    }


def probe(name: str, walk: Walk) -> Figures:
    """What a ridge regression on the same features reaches."""
    recipe = recipe_of(walk, name)
    data = [recipe.path(one.path) for one in recipe.data.instruct]
    questions = probes.short_questions(recipe.path(recipe.data.held_out[0]))
    features = probes.pooled_features(recipe.store)
    return asdict(probes.score(probes.training_questions(data), questions, features))


def evaluate_apart(walk: Walk) -> Figures:
    """Accuracy on the questions about the images that were kept apart."""
    recipe = recipe_of(walk, "photographs")
    data = walk.folder / "data" / "photographs" / "apart.jsonl"
    report = ask(walk, recipe, "photographs-apart", data=data, conditions=("real",))
    accuracy = report.real.accuracy.value
    return {"accuracy": accuracy, "over_held_out": accuracy - evaluated(walk, "photographs")}


def evaluate_four_bit(name: str, walk: Walk) -> Figures:
    """The merged model held in 4 bits, beside itself; or the sentence that refuses it."""
    recipe = recipe_of(walk, name)
    held_out = recipe.path(recipe.data.held_out[0])
    try:
        report = ask(
            walk, recipe, f"{name}-4bit", data=held_out, conditions=("real",), quantize=True
        )
    except phisense.PhisenseError as error:
        return {"delta_accuracy": None, "refused": str(error)}
    accuracy = report.real.accuracy.value
    return {"accuracy": accuracy, "delta_accuracy": accuracy - evaluated(walk, name)}


def evaluated(walk: Walk, name: str) -> float:
    """The accuracy that `evaluate` found before."""
    return float(str(Finished.before(walk, f"{name}.evaluate").figures["accuracy"]))


def export(quant: str, name: str, walk: Walk) -> Figures:
    """Write the file of llama.cpp, and compare it with the model on held-out questions."""
    if walk.tiny and not packages.installed("llama_cpp", "gguf"):
        return {"skipped": "llama-cpp-python is not installed"}
    recipe = recipe_of(walk, name)
    out = walk.folder / "exported" / f"{name}-{quant}"
    found = phisense.export(
        recipe.model,
        quant=quant,
        out=out,
        overwrite=out.exists(),
        data=[recipe.path(recipe.data.held_out[0])],
        images=recipe.image_folders,
        limit=EXPORTED_QUESTIONS,
        on_event=print,
    )
    kept = found.quantized
    return {"top1": kept.top1, "kl": kept.kl, "same_answers": kept.same_answers}


def ask(
    walk: Walk,
    recipe: phisense.Recipe,
    report: str,
    *,
    data: Path,
    model: Path | None = None,
    **options: Any,
) -> phisense.EvaluationReport:
    """Ask the questions of `data`, and write the report into `reports/<report>`."""
    return phisense.evaluate(
        recipe.model if model is None else model,
        data=[data],
        images=recipe.image_folders,
        out=walk.folder / "reports" / report,
        overwrite=True,
        batch_size=recipe.evaluate.batch_size,
        max_new_tokens=recipe.evaluate.max_new_tokens,
        on_event=print,
        **options,
    )


def _credits(folder: Path | None) -> dict[str, float]:
    """Credit of each answer that was given with the question's image, by question id."""
    from phisense.evaluation.report import read_report

    assert folder is not None, "the report is on disk"
    return {one.id: one.credit for one in read_report(folder).predictions_under("real")}
