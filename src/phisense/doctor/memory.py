"""The most memory that each step holds at one time, from shapes. Bytes.

A step has moments, each with other tensors alive; the largest is the peak. In training they are

    loading        the weights come in
    calibrating    the fresh projector runs over 64 pictures
    loss           all that autograd keeps, the log-probabilities and their gradients
    last layer     all that autograd keeps, what the backward pass of one layer needs; with checkpointing that layer anew
    optimizer      gradients and moments of what is trained, no activations

NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314): half a byte a weight, one byte for 64 weights, four for
256 of those, four for each matrix. Embeddings, the output matrix and norms stay in the number format of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..recipe import Recipe
from ..training.run import PICTURES_TO_CALIBRATE
from . import activations
from .activations import Setting
from .devices import Device
from .lengths import Lengths
from .shapes import Shapes

LOOKED_AT_ONCE = 32  # pictures, in an evaluation
QUESTION = 64  # tokens of a question, assumed
#: What allocators hold beyond what is asked of them, as a share of what comes and goes. The CPU's was fitted (docs/memory.md),
#: the GPU's is a guess.
FRAGMENTS = {"cpu": 0.02, "cuda": 0.05}


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest moment of a step, by what is in it."""

    step: str
    moment: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.terms.values())

    def as_dict(self) -> dict[str, Any]:
        return {"step": self.step, "moment": self.moment, "bytes": round(self.total), "terms": {k: round(v) for k, v in self.terms.items()}}


def nf4(weights: int) -> int:
    """Bytes of one matrix of so many weights."""
    blocks = -(-weights // 64)
    return -(-weights // 2) + blocks + 4 * -(-blocks // 256) + 4


def language_bytes(s: Shapes, number: int, quantise: bool) -> int:
    """The language part as it lies in memory."""
    matrices = s.layers * sum(nf4(a * b) if quantise else a * b * number for a, b in s.matrices)
    return matrices + (s.embeddings + s.output + s.norms) * number


def trainable(s: Shapes, rank: int | None, *, tower: bool = False) -> int:
    """Trained parameters: the projector, and LoRA of `rank` if there is one, in the vision tower, too, if that is trained along."""
    return s.projector + (s.lora(rank) + (s.vision_lora(rank) if tower else 0) if rank is not None else 0)


def setting(recipe: Recipe, stage: str, device: Device, found: Lengths) -> Setting:
    """The largest micro-batch of a stage: every row as long as the longest, with a picture."""
    asked = recipe.train.stages[stage]
    lora = recipe.train.lora if stage != "align" else None
    rows = found.rows_of(asked.micro_batch)
    return Setting(
        rows=rows,
        tokens=found.longest,
        supervised=found.supervised,
        rank=lora.rank if lora else None,
        dropout=lora.dropout if lora else 0.0,
        checkpointing=recipe.train.checkpointing,
        quantise=recipe.train.quantise,
        number=device.number,
        spans=device.spans,
        cuda=device.cuda,
        pictures=rows,
        scores=found.scores,
        behind=found.behind,
        full=stage != "align" and recipe.train.lora is None,
        tower=stage != "align" and recipe.tunes_vision,
    )


def training(recipe: Recipe, stage: str, s: Shapes, device: Device, found: Lengths) -> Peak:
    """The peak of one stage over data of such lengths."""
    return max(_training_moments(recipe, stage, s, device, found), key=lambda peak: peak.total)


def _training_moments(recipe: Recipe, stage: str, s: Shapes, device: Device, found: Lengths) -> list[Peak]:
    x = setting(recipe, stage, device, found)
    asked = recipe.train.stages[stage]
    full = recipe.train.lora is None  # then it is float32 from the beginning, and autocast makes a copy in what is computed in
    weights = float(language_bytes(s, 4 if full else device.number, recipe.train.quantise))
    trained = trainable(s, x.rank, tower=x.tower) + (s.language if x.full else 0)
    # PEFT trains a copy of the projector and keeps the first; on a CPU a third is kept to tell how far it moved.
    spare = 4.0 * s.projector * ((x.rank is not None) + (not device.cuda))
    own = 4.0 * (trained - (s.language if x.full else 0)) + spare
    held = {"framework": device.baseline, "weights": weights, "trained": own, "mapped": _mapped(s, device, recipe)}
    if recipe.features.dtype == "pixels":
        held["vision tower"] = float(device.number * s.vision)
    if full and device.number < 4:
        held["cast"] = float(device.number * (s.matrix_weights + s.output))
    optimizer = {**held, "optimizer": 8.0 * trained}
    accumulated = 4.0 * trained if asked.batch > asked.micro_batch else 0.0
    kept = activations.saved(s, x)
    once_more = activations.layer(s, x) if x.checkpointing else 0.0
    moments = [
        Peak(stage, "loading", {**held, "loading": _loading(s, device)}),
        Peak(stage, "calibrating", {**held, "activations": _calibrating(s)}),
        Peak(stage, "loss", {**optimizer, "gradients": accumulated, "activations": kept, "loss": activations.loss(s, x)}),
        Peak(
            stage,
            "last layer",
            {
                **optimizer,
                "gradients": accumulated,
                "activations": kept + once_more,
                "backward": activations.momentary(s, x),
            },
        ),
        Peak(stage, "optimizer", {**optimizer, "gradients": 4.0 * trained, "backward": 4.0 * trained if device.cuda else 0.0}),
    ]
    return [_with_fragments(peak, device) for peak in moments]


def _with_fragments(peak: Peak, device: Device) -> Peak:
    coming_and_going = sum(peak.terms.get(name, 0.0) for name in ("activations", "loss", "backward"))
    share = FRAGMENTS["cuda" if device.cuda else "cpu"]
    return Peak(peak.step, peak.moment, {**peak.terms, "fragments": share * coming_and_going})


def _mapped(s: Shapes, device: Device, recipe: Recipe) -> float:
    """On a CPU the matrices that were quantised still count: the embeddings beside them are used from the mapped file, so it stays."""
    quantised = s.layers * sum(a * b for a, b in s.matrices)
    return float(quantised * device.number) if recipe.train.quantise and not device.cuda else 0.0


def _loading(s: Shapes, device: Device) -> float:
    """On a GPU one matrix comes at a time; on a CPU nothing is copied."""
    return float(max(a * b for a, b in (*s.matrices, (s.vocabulary, s.hidden))) * device.number) if device.cuda else 0.0


def _calibrating(s: Shapes) -> float:
    features = PICTURES_TO_CALIBRATE * s.patches * s.width * 4
    made = PICTURES_TO_CALIBRATE * s.slots * sum(outputs for _, outputs in s.projector_linears) * 4
    return float(features + 1.5 * made)


def merging(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """The merge holds the merged model in its own format and a second one in float32, compares, and quantises the first anew."""
    number = 4 if recipe.merge.dtype == "float32" else 2
    whole = s.language + s.projector
    lora = recipe.train.lora
    own = trainable(s, lora.rank if lora else None, tower=recipe.tunes_vision)
    weights = float(number * whole + 4 * whole + 4 * own)
    again = float(language_bytes(s, 4, True)) if recipe.train.quantise else 0.0
    rows, tokens = recipe.evaluate.batch, s.slots + QUESTION + recipe.evaluate.max_new_tokens
    terms = {
        "framework": device.baseline,
        "weights": weights,
        "quantised again": again,
        "key-value cache": kv_cache(s, rows, tokens, 4),
        "activations": _inference(s, rows, tokens, 4, scored=rows * recipe.evaluate.max_new_tokens),
    }
    return _with_fragments(Peak("merge", "comparing", terms), device)


def kv_cache(s: Shapes, rows: int, tokens: int, number: int) -> float:
    """Keys and values of every layer."""
    return 2.0 * s.layers * s.key_heads * s.head * rows * tokens * number


def evaluating(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """The merged model asks a batch of questions with pictures, and scores the right answers, no longer than those it may give."""
    rows, tokens = recipe.evaluate.batch, s.slots + QUESTION + recipe.evaluate.max_new_tokens
    return _using("evaluate", recipe, s, device, rows, tokens, scored=rows * recipe.evaluate.max_new_tokens)


def chatting(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """One conversation that fills the window."""
    return _using("chat", recipe, s, device, 1, recipe.language.window, scored=1)


def _using(step: str, recipe: Recipe, s: Shapes, device: Device, rows: int, tokens: int, *, scored: int) -> Peak:
    number = 4 if recipe.merge.dtype == "float32" else device.number
    held = {"framework": device.baseline, "weights": float(number * (s.language + s.vision + s.projector))}
    # Every hidden layer of the tower is kept until the one that is wanted is taken.
    pictures = LOOKED_AT_ONCE if step == "evaluate" else 1
    seen = pictures * (s.patches + 1) * (s.width * (s.vision_layers + 3) + 2 * s.vision_mlp) * number
    moments = [
        Peak(step, "looking", {**held, "activations": float(seen)}),
        Peak(
            step,
            "answering",
            {
                **held,
                "key-value cache": kv_cache(s, rows, tokens, number),
                "activations": _inference(s, rows, tokens, number, scored=scored),
            },
        ),
    ]
    return max((_with_fragments(peak, device) for peak in moments), key=lambda peak: peak.total)


def _inference(s: Shapes, rows: int, tokens: int, number: int, *, scored: int) -> float:
    """One layer at work; then the logits of so many `scored` positions, in float32, and their log-softmax."""
    n = rows * tokens
    layer = n * number * (2 * s.hidden + max(4 * s.mlp, 6 * s.heads * s.head)) + rows * tokens**2
    return float(max(layer, scored * s.vocabulary * (number + 8) + n * s.hidden * number))
