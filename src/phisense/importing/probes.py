"""Probes of an import: questions with answers about generated images, and a model's logits for
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..conversations import IMAGE, Message
from ..prompt import Prompt

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


@dataclass(frozen=True, slots=True)
class Probes:
    """Token ids of each question with its answer; row i is about image i of `pixels`
    `(N, 3, S, S)`, if there is one.
    """

    rows: Sequence[Sequence[int]]
    pixels: torch.Tensor
    image_id: int

    @torch.inference_mode()
    def logits(self, model: Any) -> list[torch.Tensor]:
        """Logits `(T, V)` of each row at its text positions, on the CPU."""
        found = []
        for i, ids in enumerate(self.rows):
            row = torch.tensor([ids], device=model.device)
            seen = (
                {"pixel_values": self.pixels[i : i + 1].to(model.device)}
                if i < len(self.pixels)
                else {}
            )
            logits = model(input_ids=row, attention_mask=torch.ones_like(row), **seen).logits[0]
            found.append(logits[row[0] != self.image_id].float().cpu())
        return found


def render_probes(prompt: Prompt, image_tokens: int) -> list[list[int]]:
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


def draw_images(side: int) -> list[Image.Image]:
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
