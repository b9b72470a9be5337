"""The held-out questions that a merge compares on, and a model's outputs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..conversations import CAPTION_KINDS, ImageFinder, Question
from ..model import Phi3WithProjector
from ..model.agreement import Outputs
from ..model.batch_generate import Completion, batch_generate, query_for
from ..model.inputs import Visual
from ..model.merge_questions import merge_questions
from ..recipe import Recipe
from ..vision.encoders.encode import Encoder
from ..vision.image_io import open_image

#: Whether an answer is one of the accepted ones.
IsCorrect = Callable[[str, Sequence[str]], bool]


@dataclass(frozen=True)
class Probe:
    """A held-out question and its image: the features `(P, D)`, or the image itself if the vision
    tower was trained.
    """

    question: Question
    visual: Visual | None

    @property
    def has_short_answer(self) -> bool:
        """Whether an answer to it is right or wrong."""
        return self.question.kind not in CAPTION_KINDS


def choose_probes(recipe: Recipe) -> list[Probe]:
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


@torch.inference_mode()
def ask(
    built: Phi3WithProjector,
    recipe: Recipe,
    probes: Sequence[Probe],
    is_correct: IsCorrect | None = None,
) -> Outputs:
    """A model's greedy answers, its loss, and which short answers `is_correct` takes as right."""
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
        right=[
            is_correct(one.text, probe.question.answers)
            for one, probe in zip(completions, probes, strict=True)
            if is_correct is not None and probe.has_short_answer
        ],
    )
