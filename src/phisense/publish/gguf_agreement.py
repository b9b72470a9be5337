"""Agreement of a GGUF file with the model: logits and greedy answers on questions about images,
against torch in float32.

The float16 file generates the answers; torch and every file then score question and answer in one
forward pass. If every token of an answer is also another model's argmax, greedy decoding would have
produced the same answer there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ..chat.llama_context import Embeddings, LlamaContext, Logits
from ..conversations import IMAGE, ImageFinder, Message, Question
from ..errors import ExportError
from ..model import Phi3WithProjector, load_model
from ..model.agreement import Agreement, Gate, Outputs, compare_outputs
from ..model.folder import open_model_config
from ..pipeline.results import FileAgreement
from ..vision.image_io import open_image

MIN_F16_TOP1, MAX_F16_KL = 0.99, 1e-3  # required of float16
MAX_ANSWER_TOKENS = 32  # tokens of an answer that are compared
CALIBRATION_QUESTIONS = 64  # at most
MIN_CALIBRATION_QUESTIONS = 8  # of the user's own


@dataclass(slots=True)
class EncodedQuestion:
    """A question as input of the language model.

    Token ids before the image, image embeddings `(P', H)`, ids after the image; later the answer's
    ids.
    """

    prefix: list[int]
    embeddings: Embeddings
    suffix: list[int]
    answer: list[int]

    @property
    def scored_ids(self) -> list[int]:
        """The ids after the image, whose next-token logits are compared.

        The last of them predicts the last token of the answer.
        """
        return [*self.suffix, *self.answer[:-1]]


class TorchReference:
    """The model in torch and float32.

    A bfloat16 model stays bfloat16 in memory; each layer is converted, without loss, while it
    computes.
    """

    def __init__(self, folder: Path) -> None:
        stored = getattr(
            torch, str(open_model_config(folder).dtype or "float32").removeprefix("torch.")
        )
        self.built: Phi3WithProjector = load_model(folder, "cpu", stored, step="export")
        whole = self.built.model
        language = whole.model.language_model
        for part in (
            whole.model.vision_tower,
            whole.model.multi_modal_projector,
            language.embed_tokens,
            language.norm,
            whole.lm_head,
        ):
            part.float()
        for layer in language.layers:
            layer.register_forward_pre_hook(lambda module, _: module.float() and None)
            layer.register_forward_hook(lambda module, _, __: module.to(stored) and None)

    @torch.inference_mode()
    def encode(
        self, questions: Sequence[Question], pictures: Sequence[Image.Image]
    ) -> list[EncodedQuestion]:
        """Encode each question with the image at its index.

        An image with several questions is encoded once per question.
        """
        found = []
        prompt = self.built.prompt
        for question, picture in zip(questions, pictures, strict=True):
            vectors = self.built.project([picture])[0].float()
            ids = prompt.render_for_completion(
                [Message("user", f"{IMAGE}\n{question.text}")], [len(vectors)]
            )
            at = ids.index(prompt.image_id)
            found.append(EncodedQuestion(ids[:at], vectors.numpy(), ids[at + len(vectors) :], []))
        return found

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """The decoder layers."""
        found: Sequence[torch.nn.Module] = self.built.model.model.language_model.layers
        return found

    @torch.inference_mode()
    def logits(self, question: EncodedQuestion) -> Logits:
        """Logits `(T, V)`, one row for each of `question.scored_ids`."""
        ids = [
            *question.prefix,
            *[self.built.prompt.image_id] * len(question.embeddings),
            *question.scored_ids,
        ]
        image_embeds = torch.from_numpy(question.embeddings)
        made = self.built.model(
            inputs_embeds=self.built.embed(torch.tensor([ids]), [image_embeds]),
            logits_to_keep=len(question.scored_ids),
        )
        found: Logits = made.logits[0].float().numpy()
        return found


def generate_answer(
    context: LlamaContext, question: EncodedQuestion, stop_ids: Sequence[int]
) -> None:
    """Generate greedily into `question.answer`, including the stop token."""
    at = _prefill_image(context, question)
    logits = context.decode(0, at, question.suffix)
    at += len(question.suffix)
    while len(question.answer) < MAX_ANSWER_TOKENS:
        question.answer.append(int(logits.argmax()))
        if question.answer[-1] in stop_ids:
            return
        logits = context.decode(0, at, question.answer[-1:])
        at += 1


def answer_logits(context: LlamaContext, question: EncodedQuestion) -> Logits:
    """Logits `(T, V)`, one row for each of `question.scored_ids`."""
    return context.decode(
        0, _prefill_image(context, question), question.scored_ids, all_logits=True
    )


def measure_agreement(
    reference: Sequence[Logits], other: Sequence[Logits], questions: Sequence[EncodedQuestion]
) -> FileAgreement:
    """Agreement of the logits, and the share of answers that greedy decoding would leave unchanged:
    those of which every token is the argmax of `other`, too.
    """
    greedy = [
        found[-len(one.answer) :].argmax(1).tolist()
        for found, one in zip(other, questions, strict=True)
    ]
    measured = compare_outputs(
        Outputs([one.answer for one in questions], logits=list(map(torch.from_numpy, reference))),
        Outputs(greedy, logits=list(map(torch.from_numpy, other))),
    )
    return FileAgreement(
        positions=measured.positions,
        top1=measured.top1,
        kl=measured.kl,
        same_answers=measured.same_answers,
    )


def check_f16_agreement(agreement: FileAgreement) -> None:
    """Raise ExportError if the float16 file disagrees with the model."""
    found = Agreement(top1=agreement.top1, kl=agreement.kl)
    if not Gate(min_top1=MIN_F16_TOP1, max_kl=MAX_F16_KL).admits(found):
        raise ExportError(
            "the float16 file does not say what the model says",
            got=(
                f"the same likeliest token at {agreement.top1:.2%} of {agreement.positions}"
                f" positions, KL {agreement.kl:.2g}"
            ),
            wanted=f"at least {MIN_F16_TOP1:.0%} and at most {MAX_F16_KL:g}",
            do="Nothing was written; please report it with the model's config.json",
        )


def check_finite_agreement(agreement: FileAgreement, quant: str) -> None:
    """Raise ExportError if a quantized file yields NaN or infinite logits.

    These come from a faulty kernel, not from coarse weights.
    """
    if not math.isfinite(agreement.kl):
        raise ExportError(
            f"llama.cpp computes no numbers with {quant} on this machine",
            got=f"KL {agreement.kl} to what the model says",
            do="Nothing was written; export f16, or compile llama-cpp-python as docs/llama.md says",
        )


def drawn_questions(*, calibration: bool = False) -> tuple[list[Question], list[Image.Image]]:
    """Twenty-four questions about eight drawn images, for lack of the model's own held-out set;
    with `calibration`, as many others about other images.
    """
    texts = (
        (
            "What is in the picture?",
            "What colour is the largest thing?",
            "How many things are there?",
        )
        if not calibration
        else ("Describe the picture.", "What is on the left?", "Is there anything round?")
    )
    turn = 4 if calibration else 3
    colours = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
    questions: list[Question] = []
    pictures: list[Image.Image] = []
    for i, colour in enumerate(colours):
        picture = Image.new("RGB", (320, 240 + 40 * (i % 3)), colours[(i + turn) % len(colours)])
        draw = ImageDraw.Draw(picture)
        for j in range(1 + i % 4):
            box = (20 + 70 * j, 30 + 45 * ((i + j) % 3), 80 + 70 * j, 90 + 45 * ((i + j) % 3))
            (draw.ellipse if (i + j + calibration) % 2 else draw.rectangle)(
                box, fill=colours[(i + j) % len(colours)]
            )
        for text in texts:
            questions.append(Question(f"{colour}-{len(questions)}", None, text, (), "drawn"))
            pictures.append(picture)
    return questions, pictures


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with their images: those that files are compared on, and others that calibrate.

    `calibrated_on` says where the latter are from: "data", or "drawn images".
    """

    compared: tuple[Sequence[Question], Sequence[Image.Image]]
    calibrating: tuple[Sequence[Question], Sequence[Image.Image]]
    calibrated_on: str


def drawn_set() -> Asked:
    """Drawn questions for lack of others."""
    return Asked(drawn_questions(), drawn_questions(calibration=True), "drawn images")


def sample_questions(questions: Sequence[Question], images: Sequence[Path], limit: int) -> Asked:
    """At most `limit` questions that have an image, evenly spaced, to compare on. The importance
    matrix is calibrated on others of them, or on drawn ones if too few are left.
    """
    have = [question for question in questions if question.image is not None]
    if not have:
        raise ExportError(
            "no question has a picture",
            got=f"{len(questions)} questions",
            do="Name other --data, or none for drawn pictures",
        )
    compared = have[:: -(-len(have) // limit)]
    taken = {id(one) for one in compared}
    others = [one for one in have if id(one) not in taken]
    others = others[:: max(1, -(-len(others) // CALIBRATION_QUESTIONS))]
    folders = ImageFinder(list(images))

    def opened(some: Sequence[Question]) -> tuple[Sequence[Question], Sequence[Image.Image]]:
        return some, [open_image(folders.path(str(question.image))) for question in some]

    if len(others) < MIN_CALIBRATION_QUESTIONS:
        return Asked(opened(compared), drawn_questions(calibration=True), "drawn images")
    return Asked(opened(compared), opened(others), "data")


def _prefill_image(context: LlamaContext, question: EncodedQuestion) -> int:
    """Decode prefix and image into an empty sequence; returns the number of positions."""
    context.truncate_to(0)
    context.decode(0, 0, question.prefix)
    context.decode(0, len(question.prefix), question.embeddings)
    return len(question.prefix) + len(question.embeddings)
