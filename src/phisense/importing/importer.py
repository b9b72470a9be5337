"""The measured import: the written folder must give the same logits as the source in plain
transformers.

    source in float32 (with its adapter, loaded by PEFT)    --logits--> reference
      | adapter applied by name and merged, Llama's matrices fused to Phi-3's,
      v cast once to the dtype of the source
    model folder, staged, loaded as any other               --logits--> compared in float32;
                                                                        only then is it kept

An adapter whose names differ from PEFT's current ones is applied by name for the reference, too,
and the report says so: `reference` phisense. Without a merged adapter only the order of summation
may differ, so the largest difference of a logit is limited to 0.001 of the logits' standard
deviation. A merge that is cast to half precision rounds; it has the limits of an export: KL 0.001,
the same top-1 token at 99 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from .. import artifacts, safe_replace
from ..chat_tokenizer import prepare_tokenizer
from ..conversations import IMAGE, Message
from ..errors import PartError, UsageError
from ..model import Phi3WithProjector, load_model, save_model
from ..model.arithmetic import choose_arithmetic
from ..model.device import pick_device
from ..model.folder import MODEL_KIND
from ..opening.sandbox import TemplateError, render_chat_template
from ..parts import load_auto
from ..pipeline.progress import OnEvent, Progress, ignore
from ..prompt import Prompt
from ..vision.encoders.loading import num_patches
from .adapters import apply_adapter, is_peft_compatible, load_with_peft, open_adapter
from .probes import PROBES, ProbeLogits, Probes, draw_images, render_probes
from .rebuild import rebuild_native
from .report import (
    MAX_DIFFERENCE,
    MAX_KL,
    MIN_TOP1,
    ImportGate,
    ImportRendering,
    ImportReport,
    SecondComparison,
    check_import,
    compare_logits,
)
from .source import Source, find_source, open_source

PROGRESS_STEPS = ("opening the source", "asking the source", "writing", "asking what was written")


def import_folder(
    source: str,
    out: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> ImportReport:
    """Write the model folder `out`, with `import_report.json`, and return the report.

    Raises PartError, writing nothing, for a source that cannot be imported or an import whose
    logits differ from the source's.
    """
    found = find_source(source, base)
    _check_apart(out, found)
    safe_replace.check_can_write(out, kind=MODEL_KIND, overwrite=overwrite)
    where = pick_device(device)
    on_event(_step(0, 0))
    opened = _OpenedSource(found, where)
    on_event(_step(1, 1))
    reference = opened.ask()
    built = opened.rebuild()
    on_event(_step(2, 2))
    about = {"recipe": None, "speech": None, "made_from": list(found.made_from), "imported": True}
    with artifacts.staged_artifact(out, kind=MODEL_KIND, about=about, overwrite=overwrite) as aside:
        save_model(built, aside)
        del built
        on_event(_step(3, 3))
        report = _measure(opened, reference, aside, device)
        check_import(report)
        artifacts.write_json(aside / ImportReport.FILE, report.to_dict())
    on_event(_step(3, len(PROGRESS_STEPS)))
    return replace(report, folder=out)


class _OpenedSource:
    """The source's model with its adapter, and the probes that it is asked."""

    def __init__(self, found: Source, where: torch.device) -> None:
        self.found, self.where = found, where
        model = open_source(found)
        self.prompt, self.image_id, self.rendering = _load_prompt(found)
        self.adapter = None if found.adapter is None else open_adapter(model, found.adapter)
        self.by_peft = self.adapter is not None and is_peft_compatible(model, self.adapter)
        self.model: Any = self._adapted(model)
        self.images = draw_images(found.config.vision_config.image_size)
        self.pixels: torch.Tensor = torch.empty(0)

    def _adapted(self, model: Any) -> Any:
        if self.adapter is None:
            return model
        adapt = load_with_peft if self.by_peft else apply_adapter
        return adapt(model, self.adapter)

    def ask(self) -> list[torch.Tensor]:
        """The logits of the source, which uses its own image processor, so that different
        preprocessing is detected, too.
        """
        own = load_auto(AutoImageProcessor, self.found.base, use_fast=False)
        self.pixels = _preprocess(self.found, own, self.images)
        return self._logits(self.model)

    def ask_again(self) -> list[torch.Tensor]:
        """The logits of the source when it is opened once more."""
        return self._logits(self._adapted(open_source(self.found)))

    def _logits(self, model: Any) -> list[torch.Tensor]:
        rows = render_probes(self.prompt, num_patches(self.found.config.vision_config))
        return Probes(rows, self.pixels, self.image_id).logits(model.to(self.where))

    def rebuild(self) -> Phi3WithProjector:
        """The native model with the source's weights. The source's own model is released."""
        model, self.model = self.model.to("cpu"), None
        if self.adapter is not None:
            # PEFT's model was only the reference: the written one is applied by name, so that the
            # two implementations check each other
            if self.by_peft:
                del model
                model = apply_adapter(open_source(self.found), self.adapter)
            model = model.merge_and_unload()
        return rebuild_native(self.found, model, self.prompt, self.image_id)

    @property
    def reference(self) -> str:
        """What gives the source's logits."""
        if self.by_peft:
            return "peft"
        return "transformers" if self.adapter is None else "phisense"

    @property
    def gate(self) -> ImportGate:
        """The limits of the import: rounding is admitted only if a merge is cast."""
        if self.adapter is None or self.found.dtype is torch.float32:
            return ImportGate(largest_difference=MAX_DIFFERENCE)
        return ImportGate(kl=MAX_KL, top1=MIN_TOP1)


def _measure(
    source: _OpenedSource, reference: ProbeLogits, folder: Path, device: str
) -> ImportReport:
    """Compare the model that was written to `folder` with the source's logits; once more if they
    differ.
    """
    written = load_model(folder, device, torch.float32, step="merge")
    pixels = written.processor.image_processor(source.images, return_tensors="pt")["pixel_values"]
    probes = Probes(render_probes(written.prompt, written.image_tokens), pixels, source.image_id)
    output = probes.logits(written.model)
    measured = compare_logits(reference, output)
    config = source.found.config
    report = ImportReport(
        arithmetic=choose_arithmetic("merge", source.where).to_dict(),
        text_part=config.text_config.model_type,
        vision_part=config.vision_config.model_type,
        adapter=source.found.adapter is not None,
        reference=source.reference,
        dtype=str(source.found.dtype).removeprefix("torch."),
        same_pixels=bool(torch.equal(source.pixels, pixels)),
        positions=measured.positions,
        largest_difference=measured.largest_difference,
        kl=measured.kl,
        top1=measured.top1,
        gate=source.gate,
        prompt=source.rendering,
    )
    # different pixels explain different logits, so there is nothing to measure again
    if report.passes or not report.same_pixels:
        return report
    again = probes.logits(written.model)
    del written
    return _measure_again(source, report, (reference, output), again)


def _measure_again(
    source: _OpenedSource,
    report: ImportReport,
    before: tuple[ProbeLogits, ProbeLogits],
    written: ProbeLogits,
) -> ImportReport:
    """The report with a second comparison, and how far source and written model moved from their
    logits `before`.
    """
    reference = source.ask_again()
    source_moved, written_moved = (
        compare_logits(one, other).largest_difference
        for one, other in zip(before, (reference, written), strict=True)
    )
    why = SecondComparison(
        first_difference=report.largest_difference,
        source_moved=source_moved,
        written_moved=written_moved,
    )
    return report.asked_once_more(compare_logits(reference, written), why)


def _step(current: int, done: int) -> Progress:
    """The import's progress while step `current` is under way."""
    return Progress("importing", done, len(PROGRESS_STEPS), "steps", PROGRESS_STEPS[current])


def _load_prompt(found: Source) -> tuple[Prompt, int, ImportRendering]:
    """The source's tokenizer as a prompt, its id of `<image>`, and whether the source's own
    template renders the same ids as ours.
    """
    tokenizer: Any = load_auto(AutoTokenizer, found.base)
    rows, wanted = found.config.text_config.vocab_size, found.config.image_token_index
    has = tokenizer.get_vocab().get(IMAGE)
    if has != wanted or wanted >= rows:
        raise PartError(
            f"the tokenizer of {found.base} and its config.json do not agree on {IMAGE}",
            got=f"id {has} in the tokenizer, {wanted} in config.json, {rows} rows",
            wanted="one id, of a row of the vocabulary",
        )
    question = PROBES[0][0]
    asked = [{"role": "user", "content": f"{IMAGE}\n{question}"}]
    source_ids = refused = None
    try:
        if tokenizer.chat_template:
            # Qwen3's template has two modes, and this is the one that is rendered here
            given = {**tokenizer.special_tokens_map, "enable_thinking": False}
            theirs = render_chat_template(tokenizer.get_chat_template(), asked, given)
            source_ids = tokenizer(theirs, add_special_tokens=False)["input_ids"]
    except (TemplateError, TypeError, ValueError) as error:
        # any template error, including several templates without a default
        refused = (
            f"the source's template refuses our question: {' '.join(str(error).split())[:200]}"
        )
    has_template = bool(tokenizer.chat_template)
    image_id = prepare_tokenizer(tokenizer, rows)
    prompt = Prompt(tokenizer)
    ours = prompt.render_for_completion([Message("user", f"{IMAGE}\n{question}")], [1])
    rendering = ImportRendering(
        source_has_template=has_template,
        refused=refused,
        same_ids=source_ids == ours if source_ids else None,
    )
    return prompt, image_id, rendering


def _check_apart(out: Path, found: Source) -> None:
    """Raises UsageError if writing `out` would replace what it is made from."""
    goal = out.expanduser().resolve()
    for place in (found.base, *([found.adapter] if found.adapter else [])):
        read = place.resolve()
        if goal.is_relative_to(read) or read.is_relative_to(goal):
            raise UsageError(
                f"{out} would replace what it is made from",
                got=f"--out {goal}, read from {read}",
                wanted="folders apart, neither inside the other",
                do="Name another folder with --out",
            )


def _preprocess(found: Source, own: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """The generated images as the source preprocesses them, `(N, 3, S, S)`. Raises PartError for
    any other shape.
    """
    side = found.config.vision_config.image_size
    try:
        pixels: torch.Tensor = own(list(pictures), return_tensors="pt")["pixel_values"]
    except Exception as error:  # any error of a processor class with unusual but valid settings
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PartError(
            f"the picture processor of {found.base} prepares nothing",
            got=said,
            do="Check preprocessor_config.json",
        ) from error
    shape, wanted = tuple(pixels.shape), (len(pictures), 3, side, side)
    if shape != wanted:
        raise PartError(
            f"{found.base} prepares pictures otherwise than its tower takes them",
            got=shape,
            wanted=wanted,
            do="Check preprocessor_config.json against config.json",
        )
    return pixels
