"""The measured import: what plain transformers makes of the source, and what it makes of the folder that was written, must be one.

    source in float32 (with its adapter, loaded by PEFT)     --logits--> reference
        | adapter placed by name and merged, Llama's matrices joined to Phi-3's, cast once to the format that the source is stored in
        v
    model folder, written aside, opened as any other          --logits--> compared, in float32; only then is it kept

An adapter with other names than PEFT writes now is placed by name for the reference, too, and the report says so: `reference` phisense.
Where no adapter is merged only the order of sums may differ, so the largest difference of a logit is held to 0.001 of the logits' standard
deviation. A merge that is cast to half precision rounds; it is held to what an export is: KL 0.001, the same likeliest token at 99 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from .. import artefact
from ..conversations import IMAGE, Message
from ..errors import PartError, UsageError
from ..model import Phi3WithProjector, load_model, save_model
from ..model.arithmetic import choose
from ..model.device import pick_device
from ..model.folder import KIND
from ..model.projectors import make_processor
from ..parts import open_auto
from ..prompt import Prompt, prepare_tokenizer
from ..vision.encoders import ENCODERS, own_processor, patches
from .adapters import by_peft, fits_peft, open_adapter, put_on
from .llama import as_phi3, fuse
from .source import Source, find_source, open_source

LARGEST, KL, TOP1 = 1e-3, 1e-3, 0.99
STEPS = ("opening the source", "asking the source", "writing", "asking what was written")
Progress = Callable[[str, int, int], None]
#: Asked of drawn pictures; the last two without one.
ASKED = (
    ("What is in the picture?", "There is a red square beside a blue circle."),
    ("Describe the picture in detail.", "The picture shows several coloured shapes on a plain background."),
    ("How many things are there?", "Three."),
    ("What colour is the largest thing?", "It is green."),
    ("Hello. Who are you?", "I am an assistant that answers questions about pictures."),
    ("Name a colour.", "Blue."),
)


def import_folder(
    source: str, out: Path, *, base: str | None = None, device: str = "auto", progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Writes the model folder `out`, with `import_report.json`, and returns the report.

    Raises PartError, writing nothing, for a source that cannot be taken or an import that says something else than its source.
    """
    found = find_source(source, base)
    _check_apart(out, found)
    artefact.refuse_to_replace(out, kind=KIND)
    where = pick_device(device)
    progress(STEPS[0], 0, len(STEPS))
    model = open_source(found)
    prompt, image_id, rendering = _prompt_of(found)
    adapter = None if found.adapter is None else open_adapter(model, found.adapter)
    told = adapter is not None and fits_peft(model, adapter)
    if adapter is not None:
        model = by_peft(model, adapter) if told else put_on(model, adapter)
    pictures = _drawn(found.config.vision_config.image_size)
    progress(STEPS[1], 1, len(STEPS))
    # The source reads pictures with its own processor, so that another preparation would show, too.
    own = open_auto(AutoImageProcessor, found.whole, use_fast=False)
    pixels = _prepared(found, own, pictures)
    reference = _logits(model.to(where), _rows(prompt, patches(found.config.vision_config)), pixels, image_id)
    model = model.to("cpu")
    if adapter is not None:
        if told:  # what PEFT made was only asked: what is written is placed by name, so that each would show the other's faults
            del model
            model = put_on(open_source(found), adapter)
        model = model.merge_and_unload()
    built = _rebuilt(found, model, prompt, image_id)
    del model
    progress(STEPS[2], 2, len(STEPS))
    about = {"recipe": None, "speech": None, "made_from": list(found.made_from), "imported": True}
    with artefact.staged(out, kind=KIND, about=about) as aside:
        save_model(built, aside)
        del built
        progress(STEPS[3], 3, len(STEPS))
        written = load_model(aside, device, torch.float32, step="merge")
        seen = written.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        measured = compare(reference, _logits(written.model, _rows(written.prompt, written.slots), seen, image_id))
        lossless = found.adapter is None or found.dtype is torch.float32
        report = {
            "arithmetic": choose("merge", where).as_dict(),
            "text_part": found.config.text_config.model_type,
            "vision_part": found.config.vision_config.model_type,
            "adapter": found.adapter is not None,
            "reference": "peft" if told else "transformers" if adapter is None else "phisense",
            "dtype": str(found.dtype).removeprefix("torch."),
            "same_pixels": bool(torch.equal(pixels, seen)),
            **measured,
            "gate": {"largest_difference": LARGEST} if lossless else {"kl": KL, "top1": TOP1},
            "prompt": rendering,
        }
        check_gate(report)
        artefact.write_json(aside / "import_report.json", report)
    progress(STEPS[3], len(STEPS), len(STEPS))
    return report


def check_gate(report: dict[str, Any]) -> None:
    """Raises PartError unless what was written says what its source says."""
    gate = report["gate"]
    kept = report["largest_difference"] <= gate.get("largest_difference", float("inf"))
    kept &= report["kl"] <= gate.get("kl", float("inf")) and report["top1"] >= gate.get("top1", 0.0)
    if not kept or not report["same_pixels"]:
        figures = f"a logit {report['largest_difference']:.2g} standard deviations off, KL {report['kl']:.2g}, top 1 {report['top1']:.1%}"
        raise PartError(
            "the imported model does not say what its source says, so it was not written",
            got=figures if report["same_pixels"] else f"pictures prepared otherwise, {figures}",
            wanted=", ".join(f"{name} {value}" for name, value in gate.items()),
            do="Please report it with the source's config.json",
        )


def compare(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Of logits `(T, V)` of each question: largest difference in standard deviations of the reference, mean KL, same likeliest token."""
    a, b = torch.cat(list(reference)), torch.cat(list(other))
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "positions": len(a),
        "largest_difference": float((a - b).abs().max() / a.std()),
        "kl": float((log_a.exp() * (log_a - log_b)).sum(-1).mean()),
        "top1": float((a.argmax(-1) == b.argmax(-1)).double().mean()),
    }


def _prompt_of(found: Source) -> tuple[Prompt, int, dict[str, Any]]:
    """The source's tokenizer as a prompt, its id of `<image>`, and whether the source's own template gives the ids that ours does."""
    tokenizer: Any = open_auto(AutoTokenizer, found.whole)
    rows, wanted = found.config.text_config.vocab_size, found.config.image_token_index
    has = tokenizer.get_vocab().get(IMAGE)
    if has != wanted or wanted >= rows:
        raise PartError(
            f"the tokenizer of {found.whole} and its config.json do not agree on {IMAGE}",
            got=f"id {has} in the tokenizer, {wanted} in config.json, {rows} rows",
            wanted="one id, of a row of the vocabulary",
        )
    question = ASKED[0][0]
    asked = [{"role": "user", "content": f"{IMAGE}\n{question}"}]
    rendering: dict[str, Any] = {"source_has_template": bool(tokenizer.chat_template)}
    source_ids = None
    try:
        if tokenizer.chat_template:
            theirs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            source_ids = tokenizer(theirs, add_special_tokens=False)["input_ids"]
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # whatever its author wrote
        rendering["refused"] = f"the source's template refuses our question: {' '.join(str(error).split())[:200]}"
    image_id = prepare_tokenizer(tokenizer, rows)
    prompt = Prompt(tokenizer)
    ours = prompt.ask([Message("user", f"{IMAGE}\n{question}")], [1])
    plain = tokenizer(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False), add_special_tokens=False)[
        "input_ids"
    ]
    if plain != ours:  # tags that keep the line break behind them
        raise PartError(
            f"the tokenizer of {found.whole} reads Phi-3's template otherwise",
            got=f"{plain}",
            wanted=f"{ours}, as tags that take the line break with them give",
            do="Set rstrip of the chat tags in tokenizer.json, as Phi-3's own has it",
        )
    return prompt, image_id, rendering | {"same_ids": source_ids == ours if source_ids else None}


def _check_apart(out: Path, found: Source) -> None:
    """Raises UsageError if writing `out` would replace what it is made from."""
    goal = out.expanduser().resolve()
    for place in (found.whole, *([found.adapter] if found.adapter else [])):
        read = place.resolve()
        if goal.is_relative_to(read) or read.is_relative_to(goal):
            raise UsageError(
                f"{out} would replace what it is made from",
                got=f"--out {goal}, read from {read}",
                wanted="folders apart, neither inside the other",
                do="Name another folder with --out",
            )


def _prepared(found: Source, own: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """The drawn pictures as the source prepares them, `(N, 3, S, S)`. Raises PartError unless they are as large as its tower takes them."""
    side = found.config.vision_config.image_size
    try:
        pixels: torch.Tensor = own(list(pictures), return_tensors="pt")["pixel_values"]
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PartError(
            f"the picture processor of {found.whole} prepares nothing", got=said, do="Check preprocessor_config.json"
        ) from error
    shape, wanted = tuple(pixels.shape), (len(pictures), 3, side, side)
    if shape != wanted:
        raise PartError(
            f"{found.whole} prepares pictures otherwise than its tower takes them",
            got=shape,
            wanted=wanted,
            do="Check preprocessor_config.json against config.json",
        )
    return pixels


def _rows(prompt: Prompt, slots: int) -> list[list[int]]:
    """Ids of each question with its answer; the last two are about no picture."""
    rows = []
    for i, (question, answer) in enumerate(ASKED):
        seen = i < len(ASKED) - 2
        messages = [Message("user", f"{IMAGE}\n{question}" if seen else question), Message("assistant", answer)]
        rows.append(prompt.render(messages, [slots] if seen else []).ids)
    return rows


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[Sequence[int]], pixels: torch.Tensor, image_id: int) -> list[torch.Tensor]:
    """Each row's logits `(T, V)` at the positions of its text, on the CPU; row i is about picture i if there is one."""
    found = []
    for i, ids in enumerate(rows):
        row = torch.tensor([ids], device=model.device)
        about = {"pixel_values": pixels[i : i + 1].to(model.device)} if i < len(pixels) else {}
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), **about).logits[0]
        found.append(logits[row[0] != image_id].float().cpu())
    return found


def _rebuilt(found: Source, model: Any, prompt: Prompt, image_id: int) -> Phi3WithProjector:
    """The source's weights in a native model with a Phi-3, in the format they are stored in. Raises PartError unless all of them fit."""
    config = found.config
    llama = config.text_config.model_type == "llama"
    text = as_phi3(config.text_config) if llama else config.text_config
    text.architectures = ["Phi3ForCausalLM"]
    made = LlavaConfig(
        text_config=text, vision_config=config.vision_config, vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy, image_token_index=image_id, tie_word_embeddings=False,
        projector_hidden_act=config.projector_hidden_act, multimodal_projector_bias=config.multimodal_projector_bias,
        image_seq_length=patches(config.vision_config), dtype=found.dtype,
    )  # fmt: skip
    with torch.device("meta"):
        whole = LlavaForConditionalGeneration(made)
    try:
        weights = model.state_dict()
        weights = fuse(weights, text.num_hidden_layers) if llama else weights
    except KeyError as error:
        raise PartError(f"{found.whole} lacks a weight", got=f"no {error.args[0]}", do="Download the whole folder again") from error
    wanted = {name: weight.shape for name, weight in whole.state_dict().items()}
    odd = sorted(name for name in wanted.keys() | weights.keys() if name not in weights or wanted.get(name) != weights[name].shape)
    if odd:
        raise PartError(
            f"{found.whole} does not fill the model it describes",
            got=f"{len(odd)} weights missing, left over or of another shape, such as {odd[0]}",
            wanted="each weight in its place",
            do="Check that config.json belongs to the weights",
        )
    cast = {name: weight.to(found.dtype, copy=name == "lm_head.weight") for name, weight in weights.items()}  # a tied one is no longer
    whole.load_state_dict(cast, strict=True, assign=True)
    whole.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=prompt.stop_ids, pad_token_id=prompt.end_of_text_id, max_new_tokens=256
    )
    images = own_processor(found.whole)
    processor = make_processor(images, prompt.tokenizer, made, ENCODERS[found.encoder].extra_rows)
    return Phi3WithProjector(whole.eval(), processor, prompt, text.max_position_embeddings)


def _drawn(side: int) -> list[Image.Image]:
    """Pictures of coloured blocks, wide, high and square, so that every step of their preparation shows."""
    rng = np.random.default_rng(0)
    shapes = ((side, side), (side, side * 2 // 3), (side * 2 // 3, side), (side * 2, side * 2))
    blocks = (rng.integers(0, 255, (5, 5, 3), np.uint8) for _ in shapes)
    return [Image.fromarray(block).resize(shape, Image.Resampling.NEAREST) for block, shape in zip(blocks, shapes, strict=True)]
