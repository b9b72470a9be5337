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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from .. import artifacts, safe_replace
from ..conversations import IMAGE, Message
from ..errors import PartError, UsageError
from ..families import context_window
from ..model import Phi3WithProjector, load_model, save_model
from ..model.agreement import Agreement, Gate, Outputs, compare_outputs
from ..model.arithmetic import choose_arithmetic
from ..model.assembly import make_generation_config
from ..model.device import pick_device
from ..model.folder import MODEL_KIND
from ..model.projectors.config import make_processor, native_class, native_config
from ..model.projectors.native import LLAVA, llava_keys
from ..opening.sandbox import TemplateError, render_chat_template
from ..opening.shape_checks import check_shapes
from ..parts import load_auto
from ..pipeline.progress import OnEvent, Progress, ignore
from ..prompt import Prompt, prepare_tokenizer
from ..vision.encoders.base import ENCODERS
from ..vision.encoders.loading import load_image_processor, num_patches
from .adapters import Adapter, apply_adapter, is_peft_compatible, load_with_peft, open_adapter
from .llama import fuse_weights, to_phi3_config
from .source import REWRITTEN, Source, find_source, open_source

MAX_DIFFERENCE, MAX_KL, MIN_TOP1 = 1e-3, 1e-3, 0.99
PROGRESS_STEPS = ("opening the source", "asking the source", "writing", "asking what was written")
ProbeLogits = Sequence[torch.Tensor]
"""Of each question, `(T, V)`."""
#: Questions with answers, about generated images; the last two without one.
PROBES = (
    ("What is in the picture?", "There is a red square beside a blue circle."),
    (
        "Describe the picture in detail.",
        "The picture shows several coloured shapes on a plain background.",
    ),
    ("How many things are there?", "Three."),
    ("What colour is the largest thing?", "It is green."),
    ("Hello. Who are you?", "I am an assistant that answers questions about pictures."),
    ("Name a colour.", "Blue."),
)


def import_folder(
    source: str,
    out: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Write the model folder `out`, with `import_report.json`, and return the report.

    Raises PartError, writing nothing, for a source that cannot be imported or an import whose
    logits differ from the source's.
    """
    found = find_source(source, base)
    _check_apart(out, found)
    safe_replace.check_can_write(out, kind=MODEL_KIND, overwrite=overwrite)
    where = pick_device(device)
    on_event(_step(0, 0))
    model = open_source(found)
    prompt, image_id, rendering = _load_prompt(found)
    adapter = None if found.adapter is None else open_adapter(model, found.adapter)
    by_peft_alone = adapter is not None and is_peft_compatible(model, adapter)
    if adapter is not None:
        model = load_with_peft(model, adapter) if by_peft_alone else apply_adapter(model, adapter)
    pictures = _draw_images(found.config.vision_config.image_size)
    on_event(_step(1, 1))
    # The source uses its own image processor, so that different preprocessing is detected, too.
    own = load_auto(AutoImageProcessor, found.base, use_fast=False)
    pixels = _preprocess(found, own, pictures)
    reference = _logits(
        model.to(where),
        _render_probes(prompt, num_patches(found.config.vision_config)),
        pixels,
        image_id,
    )
    model = model.to("cpu")
    if adapter is not None:
        # PEFT's model was only the reference: the written one is applied by name, so that the two
        # implementations check each other
        if by_peft_alone:
            del model
            model = apply_adapter(open_source(found), adapter)
        model = model.merge_and_unload()
    built = _rebuild(found, model, prompt, image_id)
    del model
    on_event(_step(2, 2))
    about = {"recipe": None, "speech": None, "made_from": list(found.made_from), "imported": True}
    with artifacts.staged_artifact(out, kind=MODEL_KIND, about=about, overwrite=overwrite) as aside:
        save_model(built, aside)
        del built
        on_event(_step(3, 3))
        written = load_model(aside, device, torch.float32, step="merge")
        written_pixels = written.processor.image_processor(pictures, return_tensors="pt")[
            "pixel_values"
        ]
        rows = _render_probes(written.prompt, written.image_tokens)
        output = _logits(written.model, rows, written_pixels, image_id)
        measured = compare_logits(reference, output)
        lossless = found.adapter is None or found.dtype is torch.float32
        report = {
            "arithmetic": choose_arithmetic("merge", where).as_dict(),
            "text_part": found.config.text_config.model_type,
            "vision_part": found.config.vision_config.model_type,
            "adapter": found.adapter is not None,
            "reference": "peft"
            if by_peft_alone
            else "transformers"
            if adapter is None
            else "phisense",
            "dtype": str(found.dtype).removeprefix("torch."),
            "same_pixels": bool(torch.equal(pixels, written_pixels)),
            **measured,
            "gate": {"largest_difference": MAX_DIFFERENCE}
            if lossless
            else {"kl": MAX_KL, "top1": MIN_TOP1},
            "prompt": rendering,
        }
        # different pixels explain different logits, so there is nothing to measure again
        if report["same_pixels"] and not _passes(report):
            again = _logits(written.model, rows, written_pixels, image_id)
            del written
            report |= _measure_again(
                found,
                adapter,
                by_peft_alone,
                where,
                (reference, output),
                again,
                pixels,
                image_id,
                prompt,
            )
        check_import(report)
        artifacts.write_json(aside / "import_report.json", report)
    on_event(_step(3, len(PROGRESS_STEPS)))
    return report


def _measure_again(
    found: Source,
    adapter: Adapter | None,
    by_peft_alone: bool,
    where: torch.device,
    before: tuple[ProbeLogits, ProbeLogits],
    written: ProbeLogits,
    pixels: torch.Tensor,
    image_id: int,
    prompt: Prompt,
) -> dict[str, Any]:
    """Results of a second comparison, and how far source and written model deviate from their
    logits `before`.
    """
    model = open_source(found)
    if adapter is not None:
        model = load_with_peft(model, adapter) if by_peft_alone else apply_adapter(model, adapter)
    reference = _logits(
        model.to(where),
        _render_probes(prompt, num_patches(found.config.vision_config)),
        pixels,
        image_id,
    )
    moved = [
        compare_logits(one, other)["largest_difference"]
        for one, other in zip(before, (reference, written), strict=True)
    ]
    first = compare_logits(*before)["largest_difference"]
    return {
        **compare_logits(reference, written),
        "asked_again": {
            "first_difference": first,
            "source_moved": moved[0],
            "written_moved": moved[1],
        },
    }


def _passes(report: dict[str, Any]) -> bool:
    limits = report["gate"]
    gate = Gate(
        max_difference=limits.get("largest_difference"),
        max_kl=limits.get("kl"),
        min_top1=limits.get("top1"),
    )
    figures = ("largest_difference", "kl", "top1")
    return gate.admits(Agreement(**{name: report[name] for name in figures}))


def _step(current: int, done: int) -> Progress:
    """The import's progress while step `current` is under way."""
    return Progress("importing", done, len(PROGRESS_STEPS), "steps", PROGRESS_STEPS[current])


def check_import(report: dict[str, Any]) -> None:
    """Raises PartError unless the written model's logits match the source's."""
    if not _passes(report) or not report["same_pixels"]:
        figures = (
            f"a logit {report['largest_difference']:.2g} standard deviations off, KL"
            f" {report['kl']:.2g}, top 1 {report['top1']:.1%}"
        )
        if again := report.get("asked_again"):
            figures += (
                f"; before {again['first_difference']:.2g}, the source {again['source_moved']:.2g}"
                " off itself"
            )
            figures += f", what was written {again['written_moved']:.2g}"
        raise PartError(
            "the imported model does not say what its source says, so it was not written",
            got=figures if report["same_pixels"] else f"pictures prepared otherwise, {figures}",
            wanted=", ".join(f"{name} {value}" for name, value in report["gate"].items()),
            do="Please report it with the source's config.json",
        )


def compare_logits(
    reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """The figures of the report, from the logits `(T, V)` of each question."""
    found = compare_outputs(Outputs(logits=reference), Outputs(logits=other))
    return {
        "positions": found.positions,
        "largest_difference": found.largest_difference,
        "kl": found.kl,
        "top1": found.top1,
    }


def _load_prompt(found: Source) -> tuple[Prompt, int, dict[str, Any]]:
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
    rendering: dict[str, Any] = {"source_has_template": bool(tokenizer.chat_template)}
    source_ids = None
    try:
        if tokenizer.chat_template:
            theirs = render_chat_template(
                tokenizer.get_chat_template(), asked, dict(tokenizer.special_tokens_map)
            )
            source_ids = tokenizer(theirs, add_special_tokens=False)["input_ids"]
    except (TemplateError, TypeError, ValueError) as error:
        # any template error, including several templates without a default
        rendering["refused"] = (
            f"the source's template refuses our question: {' '.join(str(error).split())[:200]}"
        )
    image_id = prepare_tokenizer(tokenizer, rows)
    prompt = Prompt(tokenizer)
    ours = prompt.render_for_completion([Message("user", f"{IMAGE}\n{question}")], [1])
    plain = tokenizer(
        tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False),
        add_special_tokens=False,
    )["input_ids"]
    if plain != ours:  # chat tags that do not strip the line break after them
        raise PartError(
            f"the tokenizer of {found.base} reads {prompt.family.title}'s template otherwise",
            got=f"{plain}",
            wanted=f"{ours}, as tags that take the line break with them give",
            do=(
                "Set rstrip of the chat tags in tokenizer.json, as"
                f" {prompt.family.title}'s own has it"
            ),
        )
    return prompt, image_id, rendering | {"same_ids": source_ids == ours if source_ids else None}


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


def _render_probes(prompt: Prompt, image_tokens: int) -> list[list[int]]:
    """Ids of each question with its answer; the last two have no image."""
    rows = []
    for i, (question, answer) in enumerate(PROBES):
        seen = i < len(PROBES) - 2
        messages = [
            Message("user", f"{IMAGE}\n{question}" if seen else question),
            Message("assistant", answer),
        ]
        rows.append(prompt.render_conversation(messages, [image_tokens] if seen else []).ids)
    return rows


@torch.inference_mode()
def _logits(
    model: Any, rows: Sequence[Sequence[int]], pixels: torch.Tensor, image_id: int
) -> list[torch.Tensor]:
    """Logits `(T, V)` of each row at its text positions, on the CPU; row i is about image i if
    there is one.
    """
    found = []
    for i, ids in enumerate(rows):
        row = torch.tensor([ids], device=model.device)
        about = {"pixel_values": pixels[i : i + 1].to(model.device)} if i < len(pixels) else {}
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), **about).logits[0]
        found.append(logits[row[0] != image_id].float().cpu())
    return found


def _rebuild(found: Source, model: Any, prompt: Prompt, image_id: int) -> Phi3WithProjector:
    """The source's weights in a native model, in their stored dtype. Raises PartError unless all of
    them fit.
    """
    config = found.config
    llama = prompt.family.model_type != config.text_config.model_type == REWRITTEN
    text = to_phi3_config(config.text_config) if llama else config.text_config
    made = native_config(
        LLAVA,
        text,
        config.vision_config,
        image_id=image_id,
        layer=config.vision_feature_layer,
        strategy=config.vision_feature_select_strategy,
        multimodal_projector_bias=config.multimodal_projector_bias,
        dtype=found.dtype,
        **llava_keys(config.projector_hidden_act, num_patches(config.vision_config)),
    )
    with torch.device("meta"):
        whole = native_class(made)(made)
    try:
        weights = model.state_dict()
        weights = fuse_weights(weights, text.num_hidden_layers) if llama else weights
    except KeyError as error:
        raise PartError(
            f"{found.base} lacks a weight",
            got=f"no {error.args[0]}",
            do="Download the whole folder again",
        ) from error
    check_shapes(
        f"{found.base} does not fill the model it describes",
        {name: (tuple(weight.shape), "in its weights") for name, weight in weights.items()},
        {name: tuple(weight.shape) for name, weight in whole.state_dict().items()},
        wanted_by="as config.json says",
        do="Check that config.json belongs to the weights",
    )
    cast = {
        name: weight.to(found.dtype, copy=name == "lm_head.weight")
        for name, weight in weights.items()
    }  # copied: of a Llama it may be the embedding, which Phi-3 does not share
    whole.load_state_dict(cast, strict=True, assign=True)
    if text.tie_word_embeddings:
        whole.tie_weights()
    whole.generation_config = make_generation_config(prompt)
    images = load_image_processor(found.base)
    processor = make_processor(images, prompt.tokenizer, made, ENCODERS[found.encoder].extra_rows)
    return Phi3WithProjector(whole.eval(), processor, prompt, context_window(made))


def _draw_images(side: int) -> list[Image.Image]:
    """Images of colored blocks, wide, high and square, so that every step of preprocessing has an
    effect.
    """
    rng = np.random.default_rng(0)
    shapes = ((side, side), (side, side * 2 // 3), (side * 2 // 3, side), (side * 2, side * 2))
    blocks = (rng.integers(0, 255, (5, 5, 3), np.uint8) for _ in shapes)
    return [
        Image.fromarray(block).resize(shape, Image.Resampling.NEAREST)
        for block, shape in zip(blocks, shapes, strict=True)
    ]
