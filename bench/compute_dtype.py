"""What the number format that a QLoRA run computes in does to loss and gradients. `python
bench/compute_dtype.py demo/runs/practice`

The run's adapter lies on its base in NF4 as `phisense train` loads it, computing in float32, in
bfloat16 and in float16 (adapter and projector in float32, under autocast), and on the base as it
was. Each reads the same held-out questions with the right answers. The table says their loss, and
how far the gradient of everything that is trained is from that of NF4 in float32: the norm of the
difference over the norm, and the cosine. The control is the gradient of other questions. On a CPU
the formats are emulated where it has no instructions for them; the figures are those of the format,
not of the device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from phisense.conversations import CAPTION_KINDS, IMAGE, Message, Question, read_questions
from phisense.model import Phi3WithProjector
from phisense.model.trainable import ADAPTER_FOLDER
from phisense.recipe import Recipe, load_recipe
from phisense.vision.encoders.encode import Encoder
from phisense.vision.image_io import open_image

FORMATS = {
    "NF4, float32": (True, torch.float32),
    "NF4, bfloat16": (True, torch.bfloat16),
    "NF4, float16": (True, torch.float16),
    "not quantised, float32": (False, torch.float32),
    "not quantised, bfloat16": (False, torch.bfloat16),
}


def load(
    recipe: Recipe, run: Path, quantize: bool, dtype: torch.dtype
) -> tuple[Phi3WithProjector, Any]:
    built = Phi3WithProjector.from_recipe(
        recipe, quantize=quantize, stored_features=True, device="cpu", dtype=dtype
    )
    built.model.requires_grad_(False)
    built.projector.float()
    adapted = PeftModel.from_pretrained(built.model, str(run / ADAPTER_FOLDER), is_trainable=True)
    return built, adapted.train()


def learn(
    built: Phi3WithProjector,
    model: Any,
    rows: list[tuple[Question, torch.Tensor]],
    dtype: torch.dtype,
) -> tuple[float, torch.Tensor]:
    """Loss per supervised token, and the gradient of all that is trained as one vector."""
    model.zero_grad()
    total, tokens = 0.0, 0
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        talks = [
            [Message("user", f"{IMAGE}\n{q.text}"), Message("assistant", q.answers[0])]
            for q, _ in some
        ]
        batch = built.inputs(talks, [[seen] for _, seen in some]).to_kwargs()
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = model(**batch).loss
        (loss.float() * count).backward()
        total += float(loss.detach()) * count
        tokens += count
    return (
        total / tokens,
        torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
        / tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    recipe = load_recipe(asked.run / "recipe.yaml", (f"root={asked.run.parent.parent}",))
    questions = [
        q
        for file in recipe.data.held_out
        for q in read_questions(recipe.path(file))
        if q.image and q.kind not in CAPTION_KINDS
    ]
    chosen = questions[:: max(1, len(questions) // (2 * asked.questions))][: 2 * asked.questions]
    encoder = Encoder(recipe.vision.part, recipe.vision.encoder, recipe.vision.layer)
    folder = recipe.image_folders[0]
    features = {
        name: encoder.encode([open_image(folder / name)])[0]
        for name in {str(q.image) for q in chosen}
    }
    rows = [(q, features[str(q.image)]) for q in chosen]
    ours, others = rows[::2], rows[1::2]
    found: dict[str, dict[str, float]] = {}
    wanted: torch.Tensor | None = None
    for name, (quantize, dtype) in FORMATS.items():
        built, model = load(recipe, asked.run, quantize, dtype)
        loss, gradient = learn(built, model, ours, dtype)
        told = {name: (loss, gradient)}
        if wanted is None:
            wanted = gradient
            told["control: other questions"] = learn(built, model, others, dtype)
        for label, (its, vector) in told.items():
            off = float((vector - wanted).norm() / wanted.norm())
            cosine = float(torch.nn.functional.cosine_similarity(vector, wanted, dim=0))
            found[label] = {
                "loss": round(its, 5),
                "gradient_off": round(off, 5),
                "cosine": round(cosine, 5),
            }
            print(
                f"{label:26} loss {its:.5f}   gradient off by {off:.4f}, cosine {cosine:.5f}",
                flush=True,
            )
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
