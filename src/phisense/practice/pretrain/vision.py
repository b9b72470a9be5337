"""Trains the practice vision part: a small CLIP, contrastively, on scenes and captions of the
practice world.

The contrastive losses share the text tower. *Pictures*: each batch holds groups of a scene and its
near misses (one color, shape, size or position changed), so an image has to be told from images
that differ in one fact (hard negatives). *Regions*: the mean over a corner's patches against the
phrase of what lies in that corner, as in RegionCLIP (Zhong et al., 2022). *Patches*, from the
second round on: patches of a corner, in the layer that a projector reads, against each fact by
itself: noun, color, size and corner. With the first two losses alone, a corner's patches encoded
its noun jointly (a linear probe on the mean reached 0.90) but not singly (0.57), while the language
part expects cells that each encode everything; and unseen color-shape pairs were separated less
well than others. *Handwriting*: the images of the third round are full of digits, and the patch
loss covers every patch, not one per corner.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, PreTrainedTokenizerFast

from ...model.arithmetic import choose_arithmetic
from ..dialogue import caption
from ..draw import DigitSet
from ..world import COLOURS, CORNERS, DIGITS, SHAPES, SIZES, Scene, sample_scene
from .vision_data import (
    CORNER_FACTS,
    NEAR_MISSES,
    VISION_ROUNDS,
    VisionRound,
    corner_facts,
    region_phrases,
    render_all,
    render_pixels,
)
from .vision_model import (
    EMPTY,
    MEAN,
    STD,
    build_caption_tokenizer,
    build_practice_image_processor,
    clip_config,
)

PATCH_SCALE = 16.0  # softer than the learned 100: a single patch is seldom certain
READ = -2  # the hidden state that a projector reads, as in LLaVA


class VisionTrainer:
    """One contrastive training run; `step` takes one optimizer step and returns each loss."""

    def __init__(self, plan: VisionRound, model: CLIPModel | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.tokenizer = build_caption_tokenizer()
        # Eager attention: on CPUs the fused kernel's backward pass takes several times as long at
        # this length.
        self.model = model or CLIPModel._from_config(clip_config(), attn_implementation="eager")
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 200)
        return warm * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.plan.steps)))
        )

    def step(self, scenes: list[Scene], pictures: np.ndarray) -> dict[str, float]:
        """Take one optimizer step on images `(B, SIDE, SIDE, 3)` uint8; returns each loss."""
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
        # Random exposure and contrast for each image, and sensor noise.
        pixels = pixels * torch.empty(len(pixels), 1, 1, 1).uniform_(0.9, 1.1) + torch.empty(
            len(pixels), 1, 1, 1
        ).uniform_(-0.05, 0.05)
        pixels = (pixels + torch.rand_like(pixels) * 0.05 - MEAN) / STD
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=choose_arithmetic("train", "cpu").dtype is torch.bfloat16
        ):
            vision = self.model.vision_model(pixels, output_hidden_states=True)
            losses = {
                "picture": self._picture_loss(vision.pooler_output, scenes),
                "region": self._region_loss(vision, scenes),
            }
            if self.plan.patches:
                losses["patch"] = self._patch_loss(vision.hidden_states[READ], scenes)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        return {name: loss.item() for name, loss in losses.items()}

    def _picture_loss(self, pooled: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        whole = self.model.visual_projection(pooled)
        return self._contrast(
            whole,
            [caption(scene, self.rng) for scene in scenes],
            [caption(scene) for scene in scenes],
        )

    def _region_loss(self, vision: Any, scenes: list[Scene]) -> torch.Tensor:
        regions = embed_patches(self.model, corners_of(vision.last_hidden_state).mean(2)).flatten(
            0, 1
        )
        phrases = [phrase for scene in scenes for phrase in region_phrases(scene)]
        distinct = sorted(set(phrases))
        return self._contrast(regions, distinct, distinct, truths=phrases)

    def _patch_loss(self, hidden: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """Cross entropy of `plan.patches` random patches of each corner, summed over the facts."""
        corners = corners_of(hidden).flatten(0, 1)  # (4 B, 16, D)
        chosen = torch.rand(corners.shape[:2]).argsort(1)[:, : self.plan.patches]
        patches = embed_patches(
            self.model, corners.gather(1, chosen[..., None].expand(-1, -1, corners.shape[2]))
        )
        # (4 B patches, 128)
        patches = torch.nn.functional.normalize(patches.float(), dim=-1).flatten(0, 1)
        losses = []
        for words, truths in zip(
            CORNER_FACTS,
            zip(*(facts for scene in scenes for facts in corner_facts(scene)), strict=True),
            strict=True,
        ):
            logits = (
                PATCH_SCALE
                * patches
                @ torch.nn.functional.normalize(
                    embed_texts(self.model, self.tokenizer, words).float(), dim=-1
                ).T
            )
            wanted = torch.tensor([words.index(truth) for truth in truths]).repeat_interleave(
                self.plan.patches
            )
            losses.append(torch.nn.functional.cross_entropy(logits, wanted))
        return torch.stack(losses).sum()

    def _contrast(
        self,
        images: torch.Tensor,
        texts: list[str],
        keys: list[str],
        truths: list[str] | None = None,
    ) -> torch.Tensor:
        """Symmetric InfoNCE; image i matches every text j for which `truths[i] == keys[j]`."""
        truths = keys if truths is None else truths
        index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        match = (
            torch.tensor([index[t] for t in truths])[:, None]
            == torch.tensor([index[k] for k in keys])[None]
        )
        encoded = embed_texts(self.model, self.tokenizer, texts)
        logits = (
            torch.nn.functional.normalize(images.float(), dim=-1)
            @ torch.nn.functional.normalize(encoded.float(), dim=-1).T
        )
        logits = logits * self.model.logit_scale.exp()
        target = match.float()
        rows = -(torch.log_softmax(logits, 1) * target / target.sum(1, keepdim=True)).sum(1).mean()
        columns = (
            -(torch.log_softmax(logits, 0) * target / target.sum(0, keepdim=True)).sum(0).mean()
        )
        return (rows + columns) / 2


def corners_of(hidden: torch.Tensor) -> torch.Tensor:
    """`(B, 1 + 64, D)` -> `(B, 4, 16, D)`: each corner's patches, without the class token."""
    corners: torch.Tensor = (
        hidden[:, 1:].unflatten(1, (2, 4, 2, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    )
    return corners


def embed_patches(model: CLIPModel, patches: torch.Tensor) -> torch.Tensor:
    """Project patches into the text embedding space, through the layer norm and projection of the
    whole image.
    """
    embedded: torch.Tensor = model.visual_projection(model.vision_model.post_layernorm(patches))
    return embedded


def embed_texts(
    model: CLIPModel, words: PreTrainedTokenizerFast, texts: Sequence[str]
) -> torch.Tensor:
    """Texts -> their projected embeddings `(B, D)`."""
    batch = words(list(texts), padding=True, return_tensors="pt")
    embedded: torch.Tensor = model.text_projection(
        model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
    )
    return embedded


@torch.no_grad()
def region_accuracy(
    model: CLIPModel, words: PreTrainedTokenizerFast, scenes: list[Scene], digits: DigitSet
) -> dict[str, float]:
    """Zero-shot accuracy of a corner's patches among 8x8x2 + 10x8x2 + 1 phrases, by attribute.

    `patch_shape`, `patch_digit`: how often a single patch in the layer that a projector reads is
    nearest to its noun; `patches_shape`, `patches_digit`: the same by mean similarity of a corner's
    16.
    """
    phrases = [
        EMPTY,
        *(
            f"a {size} {colour} {noun}"
            for size in SIZES
            for colour in COLOURS
            for noun in (*SHAPES, *DIGITS)
        ),
    ]
    texts = embed_texts(model, words, phrases)
    pixels = (
        torch.from_numpy(np.stack([render_pixels(scene, digits) for scene in scenes]))
        .permute(0, 3, 1, 2)
        .float()
        .div_(255)
    )
    vision = model.vision_model((pixels - MEAN) / STD, output_hidden_states=True)
    regions = embed_patches(model, corners_of(vision.last_hidden_state).mean(2)).flatten(0, 1)
    best = (
        torch.nn.functional.normalize(regions, dim=-1)
        @ torch.nn.functional.normalize(texts, dim=-1).T
    ).argmax(1)
    hits: dict[str, list[bool]] = {}
    for found, truth in zip(
        (phrases[i] for i in best),
        (p for scene in scenes for p in region_phrases(scene)),
        strict=True,
    ):
        hits.setdefault("all" if truth != EMPTY else "empty", []).append(found == truth)
        if truth == EMPTY:
            continue
        told = (found.split() + [""] * 4)[:4]
        wanted = truth.split()
        kind = "digit" if wanted[3] in DIGITS else "shape"
        for key, at in (("size", 1), ("colour", 2), (kind, 3)):
            hits.setdefault(key, []).append(told[at] == wanted[at])
    # (4 B, 16, D)
    singles = embed_patches(model, corners_of(vision.hidden_states[READ])).flatten(0, 1)
    likeness = (
        torch.nn.functional.normalize(singles, dim=-1)
        @ torch.nn.functional.normalize(embed_texts(model, words, CORNER_FACTS[0]), dim=-1).T
    )
    nouns = [CORNER_FACTS[0].index(facts[0]) for scene in scenes for facts in corner_facts(scene)]
    for single, together, noun in zip(
        likeness.argmax(-1), likeness.mean(1).argmax(-1), nouns, strict=True
    ):
        if noun:
            kind = "digit" if noun > len(SHAPES) else "shape"
            hits.setdefault(f"patch_{kind}", []).extend((single == noun).tolist())
            hits.setdefault(f"patches_{kind}", []).append(bool(together == noun))
    return {key: sum(values) / len(values) for key, values in hits.items()}


def main(out: Path, log_every: int = 250) -> None:
    """Run every round: render, train, report zero-shot accuracy on three splits, save to `out`.

    The part is saved in hub layout.
    """
    model: CLIPModel | None = None
    for plan in VISION_ROUNDS:
        model = run_vision_round(plan, out, model, log_every)


def run_vision_round(
    plan: VisionRound, out: Path, model: CLIPModel | None, log_every: int
) -> CLIPModel:
    """Render, train one round and save its model to `out`.

    `model` is the previous round's, None in the first.
    """
    scenes, pictures = render_all(plan)
    size = 1 + NEAR_MISSES
    run = VisionTrainer(plan, model)
    started = time.monotonic()
    order: list[int] = []
    for step in range(plan.steps):
        if len(order) < plan.groups:
            order = run.rng.sample(range(plan.groups_rendered), plan.groups_rendered)
        rows = [group * size + i for group in order[: plan.groups] for i in range(size)]
        del order[: plan.groups]
        losses = run.step([scenes[row] for row in rows], pictures[rows])
        if (step + 1) % log_every == 0 or step == 0:
            left = (time.monotonic() - started) / (step + 1) * (plan.steps - step - 1)
            told = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"step {step + 1}/{plan.steps} {told} {left / 60:.0f} min left", flush=True)
        if (step + 1) % (log_every * 2) == 0 or step + 1 == plan.steps:
            save_vision_part(run.model, out)
            report_accuracy(run.model)
    return run.model


def report_accuracy(model: CLIPModel) -> None:
    """Print zero-shot accuracies on the three splits."""
    model.eval()
    rng = random.Random(977)
    for split, digits in (("train", "train"), ("heldout", "heldout"), ("combinations", "heldout")):
        scenes = [sample_scene(rng, split) for _ in range(300)]  # type: ignore[arg-type]
        words = build_caption_tokenizer()
        figures = region_accuracy(model, words, scenes, digits)  # type: ignore[arg-type]
        print(
            split,
            " ".join(f"{key} {value:.3f}" for key, value in sorted(figures.items())),
            flush=True,
        )
    model.train()


def save_vision_part(model: CLIPModel, out: Path) -> None:
    """Save in half precision, since the parts are shipped with the package."""
    copy = CLIPModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(out, max_shard_size="3MB")
    build_caption_tokenizer().save_pretrained(out)
    build_practice_image_processor().save_pretrained(out)


assert len(CORNERS) == 4
