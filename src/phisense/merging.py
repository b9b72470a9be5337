"""Adapter + base -> one native model folder, measured.

The adapter was trained against the base as NF4 shows it, dequantised; so that is what it is merged onto, in float32, and the
result is cast once. (bitsandbytes' own layers are not asked: for inference on some CPUs they repack their weights and compute
in bfloat16.) On held-out questions four models are compared with the unmerged adapter:

    merged           dequantised base + adapter, in the recipe's dtype: what is written
    on_original      the original base + adapter
    back_to_nf4      the merged weights quantised again (the naive merge: small changes snap back to the same grid)
    shuffled         the adapter's layers in reverse order: the control, which the gate must refuse

After full fine-tuning there is no adapter: the trained weights are compared with what the recipe's dtype leaves of them, and with the
control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights

from . import artefact
from .conversations import Pictures, Question, read_questions
from .errors import MergeError
from .model import Phi3WithProjector, save_model
from .model.arithmetic import choose
from .model.asking import Answered, about, ask
from .model.assembly import Visual
from .model.device import DTYPES
from .model.folder import KIND
from .model.history import TRAINING, history
from .model.quantized import codes_digest, dequantize, keep_readable, linear, nf4
from .model.trained import ADAPTER, WEIGHTS, load_trainable, only_projector, projector_of, snapshot, with_language
from .parts import fingerprint, resolve_part
from .recipe import Recipe, load_recipe
from .vision.encoders import Encoder
from .vision.pictures import open_picture

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """Loss per supervised token, and the share of answers that equal those of the unmerged adapter."""

    loss: float
    same_answers: float
    delta_loss: float


@dataclass(frozen=True)
class Probe:
    """A held-out question and its picture: the features `(P, D)`, or itself if the vision tower was trained along."""

    question: Question
    seen: Visual | None


def merge(
    run: Path, *, out: Path | None = None, device: str = "auto", progress: Progress = lambda what, done, total: None
) -> tuple[Path, dict[str, Any]]:
    """Measures, writes `out` or `models/<name>` beside `runs`, with `merge_report.json`; returns the folder and the report.

    Raises MergeError, writing nothing, if the merged model lost more than the recipe's gate allows or the projector changed.
    """
    artefact.read_manifest(run, kind="run")
    root = orjson.dumps(str(run.resolve().parent.parent)).decode()  # where the run is now, wherever it was trained
    recipe = load_recipe(run / "recipe.yaml", (f"root={root}",))
    folder = out or recipe.model
    artefact.refuse_to_replace(folder, kind=KIND)
    names = ("adapter", "merged", "on original", "back to NF4", "shuffled")
    probes = _probes(recipe, device)
    progress(names[0], 0, len(names))

    # One model is in memory at a time; the reference is the adapter as it was trained, unmerged, computed in float32.
    adapted = _with_adapter(recipe, run, device, quantise=recipe.train.quantise)
    reference_loss, reference = _measure(adapted, recipe, probes)
    trained = snapshot(projector_of(adapted.model))
    merged = _merge_lora(adapted, recipe)
    del adapted
    progress(names[1], 1, len(names))

    def compare(built: Phi3WithProjector, step: int) -> Measured:
        loss, answers = _measure(built, recipe, probes)
        same = sum(a == b for a, b in zip(answers, reference, strict=True)) / len(reference)
        progress(names[min(step, len(names) - 1)], step, len(names))
        return Measured(loss, same, loss - reference_loss)

    figures = {"merged": compare(merged, 2)}
    projector_change = max(
        float((p.detach().float().cpu() - trained[name].to(p.dtype).float()).abs().max()) for name, p in merged.projector.named_parameters()
    )
    if recipe.train.lora is not None:
        figures["on_original"] = compare(_merge_lora(_with_adapter(recipe, run, device, quantise=False), recipe), 3)
    if recipe.train.quantise:
        figures["back_to_nf4"] = compare(_requantised(merged, recipe, device), 4)
    figures["shuffled"] = compare(_merge_lora(_with_adapter(recipe, run, device, quantise=recipe.train.quantise, shuffled=True), recipe), 5)
    report = {
        "reference": _reference(recipe),
        "reference_loss": reference_loss,
        "probes": len(probes),
        "dtype": recipe.merge.dtype,
        "arithmetic": choose("merge", device).as_dict(),
        "projector_change": projector_change,
        **{name: asdict(figure) for name, figure in figures.items()},
        "gate": {"most_delta_loss": recipe.merge.most_delta_loss, "least_same_answers": recipe.merge.least_same_answers},
    }
    check_gate(figures["merged"], projector_change, recipe)
    _write(merged, folder, report, recipe, history(run, recipe))
    return folder, report


def _reference(recipe: Recipe) -> str:
    if recipe.train.lora is None:
        return "the model as it was trained, in float32"
    return f"the unmerged adapter on the {'dequantised NF4 base' if recipe.train.quantise else 'base'}"


def check_gate(measured: Measured, projector_change: float, recipe: Recipe) -> None:
    gate = recipe.merge
    if measured.delta_loss > gate.most_delta_loss or measured.same_answers < gate.least_same_answers:
        raise MergeError(
            "the merged model is not what was trained, so it was not written",
            got=f"loss {measured.delta_loss:+.5f} and {measured.same_answers:.1%} equal answers",
            wanted=f"at most +{gate.most_delta_loss} and at least {gate.least_same_answers:.1%}",
            do="Merge in a wider merge.dtype; loosen merge.most_delta_loss only if you mean to",
        )
    if projector_change != 0.0:
        raise MergeError(
            "the merge changed the projector", got=f"{projector_change}", wanted="0.0", do="This is a fault of phisense; please report it"
        )


def _probes(recipe: Recipe, device: str) -> list[Probe]:
    """All the held-out questions about some pictures, evenly spaced over the files: a picture is read once for all its questions."""
    questions: list[Question] = [q for file in recipe.data.held_out for q in read_questions(recipe.path(file))]
    if not questions:
        raise MergeError("there is nothing to compare on", got="no held-out question", wanted="some", do="Set data.held_out in the recipe")
    step = max(1, len(questions) // recipe.merge.samples)
    about: dict[str, list[Question]] = {}
    for i, question in enumerate(questions):
        about.setdefault(question.image or f"question {i}", []).append(question)
    chosen = [q for name in list(about)[::step] for q in about[name]][: recipe.merge.samples]
    seen = _look(recipe, sorted({question.image for question in chosen if question.image is not None}))
    return [Probe(q, None if q.image is None else seen[q.image]) for q in chosen]


def _look(recipe: Recipe, names: Sequence[str]) -> dict[str, Visual]:
    """What the models are shown of each picture."""
    pictures = Pictures(recipe.image_folders)
    seen: dict[str, Visual] = {}
    encoder = None if recipe.tunes_vision else Encoder(recipe.vision.part, recipe.vision.encoder, recipe.vision.layer)
    for start in range(0, len(names), recipe.features.batch):
        some = names[start : start + recipe.features.batch]
        opened = [open_picture(pictures.path(name), name=name) for name in some]
        seen.update(zip(some, encoder.encode(opened) if encoder else opened, strict=True))
    return seen


def _with_adapter(recipe: Recipe, run: Path, device: str, *, quantise: bool, shuffled: bool = False) -> Phi3WithProjector:
    """The base with the run's adapter on it, in float32; after full fine-tuning with its weights. Raises MergeError if any of them found
    no place."""
    stored = not recipe.tunes_vision
    built = Phi3WithProjector.from_recipe(recipe, quantise=quantise, stored_features=stored, device=device, dtype=torch.float32)
    layers = built.model.config.text_config.num_hidden_layers

    def rename(name: str) -> str:
        return _other_end(name, layers) if shuffled else name

    if recipe.train.lora is None:
        only_projector(built)
        load_trainable(with_language(built, recipe), run / WEIGHTS, rename)
        built.model.requires_grad_(False)
        return built
    _check_base(built, recipe, run)
    dequantize(built.model)
    config = LoraConfig.from_pretrained(str(run / ADAPTER))
    config.inference_mode = True
    adapted = PeftModel(built.model, config)
    weights = {rename(name): weight for name, weight in load_peft_weights(str(run / ADAPTER), device="cpu").items()}
    loaded = set_peft_model_state_dict(adapted, weights)
    if loaded.unexpected_keys:
        raise MergeError(
            "the adapter does not fit the base",
            got=f"{len(loaded.unexpected_keys)} weights without a place, such as {loaded.unexpected_keys[0]}",
        )
    built.model = adapted.eval().get_base_model()  # the LoRA layers sit inside it and compute along
    return built


def _check_base(built: Phi3WithProjector, recipe: Recipe, run: Path) -> None:
    """Raises MergeError unless the base is the one that was trained on: the weights' files, and the 4-bit codes that were made of them."""
    facts = artefact.read_json(run / "train.json")
    found = {"language_fingerprint": fingerprint(resolve_part(recipe.language.part)), "four_bit_codes": codes_digest(built.model)}
    for name, value in found.items():
        wanted = facts.get(name)  # a run of an earlier version recorded none
        if value is not None and wanted is not None and value != wanted:
            raise MergeError(
                "the base is not the one that was trained on",
                got=f"{name.replace('_', ' ')} {value[:12]}",
                wanted=wanted[:12],
                do="Name the language part of the run as it was then, or train again",
            )


def _other_end(name: str, layers: int) -> str:
    """The same weight of the layer that is as far from the language part's end as this one is from its beginning."""
    head, within, tail = name.partition(".language_model.layers.")
    number, dot, rest = tail.partition(".")
    return f"{head}{within}{layers - 1 - int(number)}{dot}{rest}" if within else name


def _merge_lora(adapted: Phi3WithProjector, recipe: Recipe) -> Phi3WithProjector:
    """Dequantised base + scale * B A in float32, cast once to the recipe's dtype; plain Linear layers, no PEFT left."""
    plain = adapted.model
    for name, module in list(plain.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            base = module.get_base_layer()
            plain.set_submodule(name, linear(base.weight.detach().float() + module.get_delta_weight("default").float(), base.bias))
    plain.model.multi_modal_projector = projector_of(plain)
    plain.to(DTYPES[recipe.merge.dtype])
    return Phi3WithProjector(plain.eval(), adapted.processor, adapted.prompt, adapted.window)


def _requantised(merged: Phi3WithProjector, recipe: Recipe, device: str) -> Phi3WithProjector:
    """The merged language part in NF4 again, by the loader that quantised the base."""
    import copy
    import tempfile

    from transformers import Phi3ForCausalLM

    text = merged.model.config.text_config
    with tempfile.TemporaryDirectory() as folder:
        phi: Any = Phi3ForCausalLM(copy.deepcopy(text)).to(merged.model.lm_head.weight.dtype)
        phi.model.load_state_dict(merged.model.model.language_model.state_dict())
        phi.lm_head.load_state_dict(merged.model.lm_head.state_dict())
        phi.save_pretrained(folder)
        phi = Phi3ForCausalLM.from_pretrained(
            folder, quantization_config=nf4(torch.float32), dtype=torch.float32, device_map={"": merged.device}
        )
    keep_readable(phi)
    again = copy.copy(merged)
    again.model = copy.deepcopy(merged.model)
    again.model.float()
    again.model.model.language_model = phi.model
    again.model.lm_head = phi.lm_head
    dequantize(again.model)
    return again


@torch.inference_mode()
def _measure(built: Phi3WithProjector, recipe: Recipe, probes: Sequence[Probe]) -> tuple[float, list[tuple[int, ...]]]:
    """Loss per supervised token over all probes, and each probe's greedy answer as token ids."""
    answered: list[Answered] = []
    for start in range(0, len(probes), recipe.evaluate.batch):
        some = probes[start : start + recipe.evaluate.batch]
        seen = {id(p.seen): p.seen for p in some if p.seen is not None}
        slots = dict(zip(seen, built.project(list(seen.values())), strict=True)) if seen else {}
        asked = [about(p.question, slots.get(id(p.seen))) for p in some]
        answered += ask(built, asked, max_new_tokens=recipe.evaluate.max_new_tokens)
    return sum(one.loss for one in answered) / sum(one.tokens for one in answered), [one.ids for one in answered]


def _write(merged: Phi3WithProjector, folder: Path, report: dict[str, Any], recipe: Recipe, trained: dict[str, Any]) -> None:
    """Puts the vision tower where its stand-in was, unless it was trained along, and writes the folder."""
    if not recipe.tunes_vision:
        whole = Phi3WithProjector.from_recipe(recipe, quantise=False, device="cpu", dtype=DTYPES[recipe.merge.dtype])
        merged.model.model.vision_tower = whole.model.model.vision_tower.to(merged.device)
    speech = recipe.speech.part if recipe.speech else None
    parts = [part for part in (recipe.language.part, recipe.vision.part) if not Path(part).expanduser().is_dir()]  # ids of the hub
    with artefact.staged(
        folder, kind=KIND, about={"recipe": recipe.name, "speech": speech, "made_from": parts, "compute_dtype": recipe.compute_dtype}
    ) as aside:
        save_model(merged, aside)
        artefact.write_json(aside / "merge_report.json", report)
        artefact.write_json(aside / TRAINING, trained)
