"""Does a file of llama.cpp say what the model says? Logits and greedy answers on questions about pictures, beside torch in float32.

The float16 file answers first; every file, and torch, then reads question and answer in one go. Where all of an answer's tokens are
also the likeliest of another's, greedy decoding would have given the same answer there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..chat.llama_context import LlamaContext, Logits, Vectors
from ..conversations import IMAGE, Message, Pictures, Question
from ..errors import ExportError
from ..model import Phi3WithProjector, load_model
from ..vision.pictures import open_picture

TOP1, KL = 0.99, 1e-3  # what float16 must keep
ANSWER = 32  # tokens of an answer that are compared

Tell = Callable[[int, int], None]


@dataclass(slots=True)
class Read:
    """A question as it enters the language part: ids before the picture, its vectors `(P', H)`, ids behind it; later the answer's ids."""

    head: list[int]
    vectors: Vectors
    tail: list[int]
    answer: list[int]

    @property
    def text(self) -> list[int]:
        """The ids whose next token is compared, all behind the picture; the last of them predicts the last of the answer."""
        return [*self.tail, *self.answer[:-1]]


class Reference:
    """The model in torch and float32. One stored in bfloat16 stays so in memory; each layer is widened, exactly, while it computes."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        stored = getattr(torch, str(AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype or "float32").removeprefix("torch."))
        self.built: Phi3WithProjector = load_model(folder, "cpu", stored, step="export")
        whole = self.built.model
        language = whole.model.language_model
        for part in (whole.model.vision_tower, whole.model.multi_modal_projector, language.embed_tokens, language.norm, whole.lm_head):
            part.float()
        for layer in language.layers:
            layer.register_forward_pre_hook(lambda module, _: module.float() and None)
            layer.register_forward_hook(lambda module, _, __: module.to(stored) and None)

    @torch.inference_mode()
    def read(self, questions: Sequence[Question], pictures: Sequence[Image.Image]) -> list[Read]:
        """Each question about the picture beside it; a picture that several ask about is encoded for each."""
        found = []
        prompt = self.built.prompt
        for question, picture in zip(questions, pictures, strict=True):
            vectors = self.built.project([picture])[0].float()
            ids = prompt.ask([Message("user", f"{IMAGE}\n{question.text}")], [len(vectors)])
            at = ids.index(prompt.image_id)
            found.append(Read(ids[:at], vectors.numpy(), ids[at + len(vectors) :], []))
        return found

    @torch.inference_mode()
    def logits(self, one: Read) -> Logits:
        """`(T, V)`, one row for each of `one.text`."""
        ids = [*one.head, *[self.built.prompt.image_id] * len(one.vectors), *one.text]
        seen = self.built.projected([torch.from_numpy(one.vectors)])
        made = self.built.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=seen, logits_to_keep=len(one.text))
        found: Logits = made.logits[0].float().numpy()
        return found


def answer(context: LlamaContext, one: Read, ends: Sequence[int]) -> None:
    """Greedily, into `one.answer`, with the token that ends it."""
    at = _behind_picture(context, one)
    logits = context.decode(0, at, one.tail)
    at += len(one.tail)
    while len(one.answer) < ANSWER:
        one.answer.append(int(logits.argmax()))
        if one.answer[-1] in ends:
            return
        logits = context.decode(0, at, one.answer[-1:])
        at += 1


def logits(context: LlamaContext, one: Read) -> Logits:
    """`(T, V)`, one row for each of `one.text`."""
    return context.decode(0, _behind_picture(context, one), one.text, every=True)


def agreement(reference: Sequence[Logits], other: Sequence[Logits], read: Sequence[Read]) -> dict[str, Any]:
    """Top-1 agreement and mean KL(reference || other) over positions, and the share of answers that greedy decoding leaves as they are."""
    same, kl, answers = [], [], []
    for right, found, one in zip(reference, other, read, strict=True):
        same.append(right.argmax(1) == found.argmax(1))
        p, q = _log_softmax(right), _log_softmax(found)
        kl.append((np.exp(p) * (p - q)).sum(1))
        answers.append(bool((found[-len(one.answer) :].argmax(1) == one.answer).all()))
    return {
        "positions": int(sum(map(len, same))),
        "top1": float(np.concatenate(same).mean()),
        "kl": float(np.concatenate(kl).mean()),
        "same_answers": float(np.mean(answers)),
    }


def check(measured: dict[str, Any]) -> None:
    """Raises ExportError if the float16 file is not the model any more."""
    if measured["top1"] < TOP1 or measured["kl"] > KL:
        raise ExportError(
            "the float16 file does not say what the model says",
            got=f"the same likeliest token at {measured['top1']:.2%} of {measured['positions']} positions, KL {measured['kl']:.2g}",
            wanted=f"at least {TOP1:.0%} and at most {KL:g}",
            do="Nothing was written; please report it with the model's config.json",
        )


def check_finite(measured: dict[str, Any], quant: str) -> None:
    """Raises ExportError if a quantised file answers with numbers that are none: a kernel that is wrong, not weights that are coarse."""
    if not np.isfinite(measured["kl"]):
        raise ExportError(
            f"llama.cpp computes no numbers with {quant} on this machine",
            got=f"KL {measured['kl']} to what the model says",
            do="Nothing was written; export f16, or compile llama-cpp-python as docs/llama.md says",
        )


def drawn() -> tuple[list[Question], list[Image.Image]]:
    """Twenty-four questions about eight pictures that are drawn here, for a model whose own held-out questions are not at hand."""
    texts = ("What is in the picture?", "What colour is the largest thing?", "How many things are there?")
    colours = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
    questions: list[Question] = []
    pictures: list[Image.Image] = []
    for i, colour in enumerate(colours):
        picture = Image.new("RGB", (320, 240 + 40 * (i % 3)), colours[(i + 3) % len(colours)])
        draw = ImageDraw.Draw(picture)
        for j in range(1 + i % 4):
            box = (20 + 70 * j, 30 + 45 * ((i + j) % 3), 80 + 70 * j, 90 + 45 * ((i + j) % 3))
            (draw.ellipse if (i + j) % 2 else draw.rectangle)(box, fill=colours[(i + j) % len(colours)])
        for text in texts:
            questions.append(Question(f"{colour}-{len(questions)}", None, text, (), "drawn"))
            pictures.append(picture)
    return questions, pictures


def chosen(questions: Sequence[Question], images: Sequence[Path], limit: int) -> tuple[list[Question], list[Image.Image]]:
    """At most `limit` of the questions that have a picture, evenly spaced, and the pictures."""
    have = [question for question in questions if question.image is not None]
    if not have:
        raise ExportError(
            "no question has a picture", got=f"{len(questions)} questions", do="Name other --data, or none for drawn pictures"
        )
    some = have[:: -(-len(have) // limit)]
    folders = Pictures(list(images))
    return list(some), [open_picture(folders.path(str(question.image))) for question in some]


def _behind_picture(context: LlamaContext, one: Read) -> int:
    """Reads the beginning into an empty sequence; returns how many positions that is."""
    context.forget(0)
    context.decode(0, 0, one.head)
    context.decode(0, len(one.head), one.vectors)
    return len(one.head) + len(one.vectors)


def _log_softmax(logits: Logits) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    found: np.ndarray[Any, np.dtype[np.float64]] = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    return found
