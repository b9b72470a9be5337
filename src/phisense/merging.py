"""Merge an adapter into its base: one native model folder, with measured losses.

The adapter was trained against the dequantized NF4 base, in the training dtype; so it is merged
onto exactly that (model/unmerged.py), in float32, and the result is cast once. On held-out
questions four models are compared with the unmerged adapter:

    merged           dequantized base + adapter, in the recipe's dtype: what is written
    on_original      the original base + adapter
    back_to_nf4      the merged weights quantized again (the naive merge: small changes are rounded
                     back to the same codes)
    shuffled         the adapter's layers in reverse order: the control, which the gate must reject

After full fine-tuning there is no adapter: the trained weights are compared with their cast to the
recipe's dtype, and with the control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from . import artifacts, safe_replace
from .conversations import ImageFinder, Question
from .errors import MergeError
from .model import Phi3WithProjector, save_model
from .model.agreement import Agreement, Gate, Outputs, compare_outputs
from .model.arithmetic import choose_arithmetic
from .model.assembly import load_language
from .model.batch_generate import Completion, batch_generate, query_for
from .model.device import DTYPES
from .model.folder import MODEL_KIND
from .model.inputs import Visual
from .model.merge_questions import merge_questions
from .model.provenance import PartDigests, check_parts_unchanged
from .model.quantized import dequantize, frozen_linear
from .model.trainable import get_projector, snapshot
from .model.training_record import RECORD_FILE, training_record
from .model.unmerged import attach_vision_tower, load_run_recipe, load_with_adapter
from .parts import load_auto, resolve_part, split_revision
from .pipeline.progress import OnEvent, Progress, ignore
from .pipeline.results import MergeGate, MergeMeasurement, MergeResult
from .recipe import Recipe
from .vision.encoders.encode import Encoder
from .vision.image_io import open_image


@dataclass(frozen=True)
class Probe:
    """A held-out question and its image: the features `(P, D)`, or the image itself if the vision
    tower was trained.
    """

    question: Question
    visual: Visual | None


def merge(
    run: Path,
    *,
    changes: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    on_event: OnEvent = ignore,
) -> MergeResult:
    """Measure the merge and write `out` or `models/<name>` beside `runs`, with `merge_report.json`,
    which is returned.

    `changes` to the run's recipe, key=value, set where its parts are now, or how it is merged.
    Raises PartError if a part is not the one used in training; MergeError, writing nothing, if the
    merged model exceeds the limits of the recipe's gate or the projector changed.
    """
    recipe = load_run_recipe(run, changes)
    folder = out or recipe.model
    safe_replace.check_can_write(folder, kind=MODEL_KIND, overwrite=overwrite)
    parts = check_parts_unchanged(run, recipe)
    probes = _probes(recipe)
    results: dict[str, Outputs] = {}
    order = [
        *(["on_original"] if recipe.train.lora is not None else []),
        "shuffled",
        "adapter",
        "merged",
    ]
    order += ["back_to_nf4"] if recipe.train.quantize else []

    def measure(name: str, built: Phi3WithProjector) -> None:
        results[name] = _measure(built, recipe, probes)
        on_event(_progress(name, len(results), len(order)))

    # One model is in memory at a time: the merged one is made last, and quantized again from its
    # files.
    on_event(_progress(order[0], 0, len(order)))
    if recipe.train.lora is not None:
        measure(
            "on_original",
            _merge_lora(load_with_adapter(recipe, run, device, original=True), recipe),
        )
    measure(
        "shuffled",
        _merge_lora(load_with_adapter(recipe, run, device, rename=_reverse_layers(recipe)), recipe),
    )
    adapted = load_with_adapter(recipe, run, device)
    measure("adapter", adapted)  # the reference: the unmerged adapter
    trained = snapshot(get_projector(adapted.model))
    merged = _merge_lora(adapted, recipe)
    del adapted
    measure("merged", merged)
    projector_change = max(
        float((p.detach().float().cpu() - trained[name].to(p.dtype).float()).abs().max())
        for name, p in merged.projector.named_parameters()
    )
    check_merge(compare_outputs(results["adapter"], results["merged"]), projector_change, recipe)
    with artifacts.staged_artifact(
        folder, kind=MODEL_KIND, about=_manifest_facts(recipe, parts), overwrite=overwrite
    ) as aside:
        attach_vision_tower(merged, recipe, DTYPES[recipe.merge.dtype])
        save_model(merged, aside)
        if recipe.train.quantize:
            measure("back_to_nf4", _requantized(merged, aside))
        report = replace(_report(recipe, results, projector_change, device), folder=folder)
        artifacts.write_json(aside / MergeResult.FILE, report.to_dict())
        artifacts.write_json(aside / RECORD_FILE, training_record(run, recipe).to_dict())
    return report


def _report(
    recipe: Recipe, results: Mapping[str, Outputs], projector_change: float, device: str
) -> MergeResult:
    """How each model differs from the unmerged adapter, and the limits of the merged one."""
    reference = results["adapter"]
    measured = {}
    for name, outputs in results.items():
        found = compare_outputs(reference, outputs)
        measured[name] = MergeMeasurement(
            loss=outputs.loss, same_answers=found.same_answers, delta_loss=found.delta_loss
        )
    return MergeResult(
        reference=_describe_reference(recipe),
        reference_loss=reference.loss,
        probes=len(reference.answers),
        dtype=recipe.merge.dtype,
        arithmetic=choose_arithmetic("merge", device).to_dict(),
        projector_change=projector_change,
        merged=measured["merged"],
        on_original=measured.get("on_original"),
        back_to_nf4=measured.get("back_to_nf4"),
        shuffled=measured["shuffled"],
        gate=MergeGate(
            max_delta_loss=recipe.merge.max_delta_loss,
            min_same_answers=recipe.merge.min_same_answers,
        ),
    )


def _manifest_facts(recipe: Recipe, parts: PartDigests) -> dict[str, object]:
    """Facts for the manifest: `made_from` holds the parts' Hub ids, `parts` the digests and
    revisions of all parts.
    """
    named = (recipe.language.part, recipe.vision.part)
    return {
        "recipe": recipe.name,
        "speech": recipe.speech.part if recipe.speech else None,
        "made_from": [
            split_revision(part)[0] for part in named if not Path(part).expanduser().is_dir()
        ],
        "parts": {name: one.to_dict() for name, one in parts.items()},
        "compute_dtype": recipe.compute_dtype,
    }


def _describe_reference(recipe: Recipe) -> str:
    if recipe.train.lora is None:
        return "the model as it was trained, in float32"
    return (
        f"the unmerged adapter on the {'dequantised NF4 base' if recipe.train.quantize else 'base'}"
    )


def _progress(name: str, done: int, total: int) -> Progress:
    return Progress("merging and measuring", done, total, "models", name.replace("_", " "))


def check_merge(measured: Agreement, projector_change: float, recipe: Recipe) -> None:
    """Raises MergeError if the merged model differs from the adapter by more than `recipe.merge`
    allows.
    """
    gate = Gate(
        max_delta_loss=recipe.merge.max_delta_loss, min_same_answers=recipe.merge.min_same_answers
    )
    if not gate.admits(measured):
        raise MergeError(
            "the merged model is not what was trained, so it was not written",
            got=f"loss {measured.delta_loss:+.5f} and {measured.same_answers:.1%} equal answers",
            wanted=f"at most +{gate.max_delta_loss} and at least {gate.min_same_answers:.1%}",
            do="Merge in a wider merge.dtype; loosen merge.max_delta_loss only if you mean to",
        )
    if projector_change != 0.0:
        raise MergeError(
            "the merge changed the projector",
            got=f"{projector_change}",
            wanted="0.0",
            do="This is a fault of phisense; please report it",
        )


def _probes(recipe: Recipe) -> list[Probe]:
    """Held-out questions about some images, evenly spaced over the files.

    All questions about a chosen image are taken, since it is encoded only once.
    """
    questions = merge_questions(recipe)
    step = max(1, len(questions) // recipe.merge.samples)
    about: dict[str, list[Question]] = {}
    for i, question in enumerate(questions):
        about.setdefault(question.image or f"question {i}", []).append(question)
    chosen = [q for name in list(about)[::step] for q in about[name]][: recipe.merge.samples]
    seen = _load_visuals(
        recipe, sorted({question.image for question in chosen if question.image is not None})
    )
    return [Probe(q, None if q.image is None else seen[q.image]) for q in chosen]


def _load_visuals(recipe: Recipe, names: Sequence[str]) -> dict[str, Visual]:
    """The features of each image, or the image itself if the vision tower was trained."""
    pictures = ImageFinder(recipe.image_folders)
    seen: dict[str, Visual] = {}
    vision = recipe.vision
    encoder = (
        None
        if recipe.tunes_vision
        else Encoder(vision.part, vision.encoder, vision.layer, size=vision.size)
    )
    for start in range(0, len(names), recipe.features.batch_size):
        some = names[start : start + recipe.features.batch_size]
        opened = [open_image(pictures.path(name), name=name) for name in some]
        seen.update(zip(some, encoder.encode(opened) if encoder else opened, strict=True))
    return seen


def _reverse_layers(recipe: Recipe) -> Callable[[str], str]:
    """A function that maps a weight's name to that of the mirrored layer: the first becomes the
    last.
    """
    whole = load_auto(AutoConfig, resolve_part(recipe.language.part))
    layers = getattr(whole, "text_config", whole).num_hidden_layers

    def rename(name: str) -> str:
        head, within, tail = name.partition(".language_model.layers.")
        number, dot, rest = tail.partition(".")
        return f"{head}{within}{layers - 1 - int(number)}{dot}{rest}" if within else name

    return rename


def _merge_lora(adapted: Phi3WithProjector, recipe: Recipe) -> Phi3WithProjector:
    """Base + scale * B A in float32, cast once to the recipe's dtype; the result has plain Linear
    layers without PEFT.
    """
    plain = adapted.model
    for name, module in list(plain.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            base = module.get_base_layer()
            plain.set_submodule(
                name,
                frozen_linear(
                    base.weight.detach().float() + module.get_delta_weight("default").float(),
                    base.bias,
                ),
            )
    plain.model.multi_modal_projector = get_projector(plain)
    plain.to(DTYPES[recipe.merge.dtype])
    return Phi3WithProjector(plain.eval(), adapted.processor, adapted.prompt, adapted.window)


def _requantized(merged: Phi3WithProjector, written: Path) -> Phi3WithProjector:
    """The same model with its language part in NF4 again, loaded from the `written` folder as the
    base was in training.
    """
    where = merged.device
    # before the other is loaded: memory may hold only one
    del merged.model.model.language_model, merged.model.lm_head
    phi = load_language(written, where, torch.float32, quantize=True)
    dequantize(phi)
    merged.model.model.language_model, merged.model.lm_head = phi.model, phi.lm_head
    merged.model.float()
    return merged


@torch.inference_mode()
def _measure(built: Phi3WithProjector, recipe: Recipe, probes: Sequence[Probe]) -> Outputs:
    completions: list[Completion] = []
    for start in range(0, len(probes), recipe.evaluate.batch_size):
        batch = probes[start : start + recipe.evaluate.batch_size]
        visuals = {id(p.visual): p.visual for p in batch if p.visual is not None}
        image_embeds = (
            dict(zip(visuals, built.project(list(visuals.values())), strict=True))
            if visuals
            else {}
        )
        queries = [query_for(p.question, image_embeds.get(id(p.visual))) for p in batch]
        completions += batch_generate(built, queries, max_new_tokens=recipe.evaluate.max_new_tokens)
    return Outputs(
        answers=[one.ids for one in completions],
        loss=sum(one.loss for one in completions) / sum(one.tokens for one in completions),
    )
