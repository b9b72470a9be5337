"""The steps of a merge, and what is measured.

The adapter was trained against the dequantized NF4 base, in the training dtype; so it is merged
onto exactly that (model/unmerged.py), in float32, and the result is cast once. On held-out
questions these models are compared with the unmerged adapter:

    merged           dequantized base + adapter, in the recipe's dtype, as it was written
    on_original      the original base + adapter
    back_to_nf4      the merged weights quantized again (the naive merge: small changes are rounded
                     back to the same codes)
    four_bit         the written folder as `--quantize` opens it: the base in NF4 as in training,
                     with the adapter beside it (model/adapter_beside.py)
    shuffled         the adapter's layers in reverse order: the control, which the gate must reject

After full fine-tuning there is no adapter: the trained weights are compared with their cast to the
recipe's dtype, and with the control. Where the base was not quantized, `four_bit` is the merged
weights in NF4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import artifacts, safe_replace
from ..model import Phi3WithProjector, load_model, save_model
from ..model.adapter_beside import Adapter, read_adapter, write_beside
from ..model.agreement import Outputs
from ..model.arithmetic import choose_arithmetic
from ..model.assembly import load_language
from ..model.device import DTYPES, pick_device
from ..model.folder import MODEL_KIND
from ..model.provenance import PartDigests, check_parts_unchanged
from ..model.quantized import dequantize
from ..model.trainable import get_projector, snapshot
from ..model.training_record import RECORD_FILE, training_record
from ..model.unmerged import attach_vision_tower, load_run_recipe, load_with_adapter
from ..parts import resolve_part, split_revision
from ..pipeline.progress import Finished, OnEvent, Progress, ignore
from ..pipeline.results import MergeMeasurement, MergeResult, WrittenWeights
from ..recipe import Recipe
from . import gate
from .adding import add_adapter, reverse_layers
from .probes import IsCorrect, Probe, ask, choose_probes
from .written import check_outputs_equal, check_weights_equal, weight_digests


def merge(
    run: Path,
    *,
    changes: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    is_correct: IsCorrect | None = None,
    on_event: OnEvent = ignore,
) -> MergeResult:
    """Measure the merge and write `out` or `models/<name>` beside `runs`, with `merge_report.json`,
    which is returned.

    `changes` to the run's recipe, key=value, set where its parts are now, or how it is merged;
    `is_correct` scores short answers, without which the loss alone is judged. Raises PartError if a
    part is not the one used in training; MergeError, writing no model, if the merged model exceeds
    the limits of the recipe's gate, is not the adapter's, or was not written as it is. What the
    gate rejects leaves its report in the run's folder.
    """
    recipe = load_run_recipe(run, changes)
    folder = out or recipe.model
    safe_replace.check_can_write(folder, kind=MODEL_KIND, overwrite=overwrite)
    parts = check_parts_unchanged(run, recipe)
    measuring = _Measuring(recipe, choose_probes(recipe), is_correct, on_event)
    # One model is in memory at a time: the merged one is made last, and quantized again from its
    # files.
    _measure_others(measuring, run, device)
    adapted = load_with_adapter(recipe, run, device)
    measuring("adapter", adapted)  # the reference: the unmerged adapter
    trained, adapter = snapshot(get_projector(adapted.model)), read_adapter(adapted.model)
    merged = _cast(add_adapter(adapted), recipe)
    del adapted
    with artifacts.staged_artifact(
        folder, kind=MODEL_KIND, about=_manifest_facts(recipe, parts), overwrite=overwrite
    ) as aside:
        attach_vision_tower(merged, recipe, DTYPES[recipe.merge.dtype])
        save_model(merged, aside)
        digests = weight_digests(merged.model)
        first = ask(merged, recipe, measuring.probes[: recipe.evaluate.batch_size])
        del merged
        reopened = load_model(aside, device, DTYPES[recipe.merge.dtype], step="merge")
        written = check_weights_equal(aside, digests, weight_digests(reopened.model))
        check_outputs_equal(
            first, ask(reopened, recipe, measuring.probes[: recipe.evaluate.batch_size])
        )
        measuring("merged", reopened)
        change = _projector_change(reopened, trained)
        gate.check_projector(change)
        report = replace(_report(measuring, change, written, device), folder=folder)
        if rejected := gate.judge(report):
            report = replace(report, rejected=rejected, folder=run, written=None)
            kept = gate.keep_report(run, report)
            on_event(Finished(report))
            where = [] if out is None else ["--out", str(out)]
            where += ["--overwrite"] if overwrite else []
            raise gate.rejection(report, run, kept, changes, where)
        if recipe.train.quantize:
            measuring("back_to_nf4", _requantized(reopened, aside))
            report = replace(report, back_to_nf4=measuring.beside_adapter("back_to_nf4"))
        del reopened
        report = replace(report, four_bit=_measure_four_bit(measuring, aside, adapter, device))
        artifacts.write_json(aside / MergeResult.FILE, report.to_dict())
        artifacts.write_json(aside / RECORD_FILE, training_record(run, recipe).to_dict())
    if gate.has_report(run):  # of a merge that was rejected before
        gate.keep_report(run, report)
    return report


class _Measuring:
    """The outputs of each model on the same probes, by name, with the progress of asking them."""

    def __init__(
        self,
        recipe: Recipe,
        probes: Sequence[Probe],
        is_correct: IsCorrect | None,
        on_event: OnEvent,
    ) -> None:
        self.recipe, self.probes, self.is_correct = recipe, probes, is_correct
        self.on_event = on_event
        self.outputs: dict[str, Outputs] = {}
        lora = recipe.train.lora is not None
        self.order = [
            *(["on_original"] if lora else []),
            *("shuffled", "adapter", "merged"),
            *(["back_to_nf4"] if recipe.train.quantize else []),
            "four_bit",
        ]
        self._show(self.order[0])

    def __call__(self, name: str, built: Phi3WithProjector) -> None:
        """Ask one model."""
        self.outputs[name] = ask(built, self.recipe, self.probes, self.is_correct)
        self._show(name)

    def beside_adapter(self, name: str) -> MergeMeasurement:
        """The measurement of one model beside the unmerged adapter."""
        return gate.compare(self.outputs["adapter"], self.outputs[name])

    def _show(self, name: str) -> None:
        self.on_event(
            Progress(
                "merging and measuring",
                len(self.outputs),
                len(self.order),
                "models",
                name.replace("_", " "),
            )
        )


def _measure_others(measuring: _Measuring, run: Path, device: str) -> None:
    """The adapter on the original base, and the control."""
    recipe = measuring.recipe
    if recipe.train.lora is not None:
        built = add_adapter(load_with_adapter(recipe, run, device, original=True))
        measuring("on_original", _cast(built, recipe))
        del built
    control = load_with_adapter(recipe, run, device, rename=reverse_layers(recipe))
    measuring("shuffled", _cast(add_adapter(control), recipe))


@torch.no_grad()
def _cast(merged: Phi3WithProjector, recipe: Recipe) -> Phi3WithProjector:
    """The merged model in the recipe's dtype: rounded once, here.

    Only what is saved is rounded. `model.to(dtype)` would round the frequencies of the rotary
    embeddings, too, which every opened model computes in float32.
    """
    dtype = DTYPES[recipe.merge.dtype]
    for parameter in merged.model.parameters():
        parameter.data = parameter.data.to(dtype)
    saved = merged.model.state_dict().keys()
    for name, buffer in merged.model.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    return merged


def _projector_change(built: Phi3WithProjector, trained: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a projector weight to the trained one, in the model's dtype."""
    return max(
        float((p.detach().float().cpu() - trained[name].to(p.dtype).float()).abs().max())
        for name, p in built.projector.named_parameters()
    )


def _report(
    measuring: _Measuring, projector_change: float, written: WrittenWeights, device: str
) -> MergeResult:
    """How each model differs from the unmerged adapter, and the limits of the merged one."""
    recipe, reference = measuring.recipe, measuring.outputs["adapter"]
    scored = len(reference.right)
    return MergeResult(
        reference=_describe_reference(recipe),
        reference_loss=reference.loss,
        reference_accuracy=gate.share_of(sum(reference.right), scored) if scored else None,
        probes=len(reference.answers),
        scored=scored,
        dtype=recipe.merge.dtype,
        arithmetic=choose_arithmetic("merge", device).to_dict(),
        projector_change=projector_change,
        merged=measuring.beside_adapter("merged"),
        on_original=(
            measuring.beside_adapter("on_original") if "on_original" in measuring.outputs else None
        ),
        shuffled=measuring.beside_adapter("shuffled"),
        gate=gate.gate_of(recipe),
        written=written,
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


def _measure_four_bit(
    measuring: _Measuring, written: Path, adapter: Adapter, device: str
) -> MergeMeasurement:
    """The `written` folder as `--quantize` will open it, after what that needs is added to it."""
    recipe = measuring.recipe
    if recipe.train.quantize:
        part = resolve_part(recipe.language.part)
        base = load_language(part, pick_device(device), torch.float32, quantize=True)
        write_beside(written, base, adapter, DTYPES[recipe.merge.dtype])
        del base
    measuring("four_bit", load_model(written, device, quantize=True, measured=False, step="merge"))
    return measuring.beside_adapter("four_bit")


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
