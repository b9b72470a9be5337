"""Peak memory of each step, estimated from shapes. In bytes.

A step has phases with different live tensors; the largest is the peak. In training they are

    loading        the weights are loaded
    calibrating    the new projector runs on `CALIBRATION_IMAGES` images
    loss           everything that autograd saved, the log-probabilities and their gradients
    last layer     everything that autograd saved, and the temporaries of one layer's backward
                   pass; with checkpointing also that layer's recomputed activations
    optimizer      gradients and moments of the trained weights, no activations

NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314): half a byte per weight, one
byte per 64 weights, four per 256 of those, four per matrix. Embeddings, the output matrix and norms
stay in the device's number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluation.predictors import ENCODE_BATCH_SIZE
from ..model.quantized import NF4_BLOCK, NF4_SCALES_BLOCK
from ..recipe import Recipe
from ..training.run_context import CALIBRATION_IMAGES
from . import activations
from .activations import MicroBatch
from .devices import Device
from .lengths import Lengths
from .shapes import Shapes

QUESTION_TOKENS = 64  # assumed tokens per question
#: Memory that allocators hold in addition, as a fraction of temporary tensors. Fitted for the CPU
#: (docs/memory.md), a guess for GPUs.
FRAGMENTATION = {"cpu": 0.02, "cuda": 0.05}


@dataclass(frozen=True, slots=True)
class Peak:
    """The phase of a step with the most memory, by component."""

    step: str
    moment: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all components, in bytes."""
        return sum(self.terms.values())

    def to_dict(self) -> dict[str, object]:
        """The JSON object of a peak, in whole bytes."""
        return {
            "step": self.step,
            "moment": self.moment,
            "bytes": round(self.total),
            "terms": {k: round(v) for k, v in self.terms.items()},
        }


def nf4_bytes(weights: int) -> int:
    """Bytes of one NF4 matrix with this many weights."""
    blocks = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // NF4_SCALES_BLOCK) + 4


def language_bytes(s: Shapes, itemsize: int, quantize: bool) -> int:
    """Bytes of the language part's weights."""
    matrices = s.layers * sum(
        nf4_bytes(a * b) if quantize else a * b * itemsize for a, b in s.matrices
    )
    return matrices + (s.embeddings + s.output + s.norms) * itemsize


def count_trained_weights(s: Shapes, rank: int | None, *, tower: bool = False) -> int:
    """Trained parameters: the projector, LoRA of `rank` if not None, and with `tower` LoRA in the
    vision tower.
    """
    return s.projector + (
        s.lora(rank) + (s.vision_lora(rank) if tower else 0) if rank is not None else 0
    )


def largest_micro_batch(recipe: Recipe, stage: str, device: Device, lengths: Lengths) -> MicroBatch:
    """The largest micro-batch of a stage: every row has the longest length and an image."""
    asked = recipe.train.stages[stage]
    lora = recipe.train.lora if stage != "align" else None
    rows = lengths.rows_of(asked.micro_batch_size)
    return MicroBatch(
        rows=rows,
        tokens=lengths.longest,
        supervised=lengths.supervised,
        rank=lora.rank if lora else None,
        dropout=lora.dropout if lora else 0.0,
        checkpointing=recipe.train.gradient_checkpointing,
        quantize=recipe.train.quantize,
        itemsize=device.itemsize,
        varlen=device.varlen,
        cuda=device.cuda,
        pictures=rows,
        scores=lengths.scores,
        behind=lengths.behind,
        full_finetuning=stage != "align" and recipe.train.lora is None,
        train_vision=stage != "align" and recipe.tunes_vision,
    )


def training_peak(recipe: Recipe, stage: str, s: Shapes, device: Device, lengths: Lengths) -> Peak:
    """The peak of one stage for data of these lengths."""
    return max(_training_moments(recipe, stage, s, device, lengths), key=lambda peak: peak.total)


def _training_moments(
    recipe: Recipe, stage: str, s: Shapes, device: Device, lengths: Lengths
) -> list[Peak]:
    x = largest_micro_batch(recipe, stage, device, lengths)
    asked = recipe.train.stages[stage]
    # full fine-tuning keeps float32 weights, and autocast copies them to the compute format
    full = recipe.train.lora is None
    weights = float(language_bytes(s, 4 if full else device.itemsize, recipe.train.quantize))
    trained = count_trained_weights(s, x.rank, tower=x.train_vision) + (
        s.language if x.full_finetuning else 0
    )
    # PEFT trains a copy of the projector and keeps the original; on a CPU a third copy is kept to
    # measure how far it moved.
    spare = 4.0 * s.projector * ((x.rank is not None) + (not device.cuda))
    own = 4.0 * (trained - (s.language if x.full_finetuning else 0)) + spare
    held = {
        "framework": device.baseline,
        "weights": weights,
        "trained": own,
        "mapped": _mapped(s, device, recipe),
    }
    if recipe.features.dtype == "pixels":
        held["vision tower"] = float(device.itemsize * s.vision)
    if full and device.itemsize < 4:
        held["cast"] = float(device.itemsize * (s.matrix_weights + s.output))
    optimizer = {**held, "optimizer": 8.0 * trained}
    accumulated = 4.0 * trained if asked.batch_size > asked.micro_batch_size else 0.0
    kept = activations.saved_for_backward(s, x)
    once_more = activations.decoder_layer(s, x) if x.checkpointing else 0.0
    moments = [
        Peak(stage, "loading", {**held, "loading": _loading(s, device)}),
        Peak(stage, "calibrating", {**held, "activations": _calibrating(s)}),
        Peak(
            stage,
            "loss",
            {
                **optimizer,
                "gradients": accumulated,
                "activations": kept,
                "loss": activations.loss_peak(s, x),
            },
        ),
        Peak(
            stage,
            "last layer",
            {
                **optimizer,
                "gradients": accumulated,
                "activations": kept + once_more,
                "backward": activations.backward_peak(s, x),
            },
        ),
        Peak(
            stage,
            "optimizer",
            {
                **optimizer,
                "gradients": 4.0 * trained,
                "backward": 4.0 * trained if device.cuda else 0.0,
            },
        ),
    ]
    return [_with_fragmentation(peak, device) for peak in moments]


def _with_fragmentation(peak: Peak, device: Device) -> Peak:
    coming_and_going = sum(
        peak.terms.get(name, 0.0) for name in ("activations", "loss", "backward")
    )
    share = FRAGMENTATION["cuda" if device.cuda else "cpu"]
    return Peak(peak.step, peak.moment, {**peak.terms, "fragments": share * coming_and_going})


def _mapped(s: Shapes, device: Device, recipe: Recipe) -> float:
    """On a CPU the original matrices count in addition to the quantized ones: the embeddings are
    used from the same memory-mapped file, which stays resident.
    """
    quantised = s.layers * sum(a * b for a, b in s.matrices)
    return float(quantised * device.itemsize) if recipe.train.quantize and not device.cuda else 0.0


def _loading(s: Shapes, device: Device) -> float:
    """On a GPU one matrix is copied at a time; on a CPU nothing is copied."""
    return (
        float(max(a * b for a, b in (*s.matrices, (s.vocabulary, s.hidden))) * device.itemsize)
        if device.cuda
        else 0.0
    )


def _calibrating(s: Shapes) -> float:
    features = CALIBRATION_IMAGES * s.patches * s.width * 4
    made = (
        CALIBRATION_IMAGES * s.image_tokens * sum(outputs for _, outputs in s.projector_linears) * 4
    )
    return float(features + 1.5 * made)


def merging_peak(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """The merge holds one model at a time, in float32 with its adapter; the merged model replaces
    it, and re-quantization reads the written files.
    """
    whole = s.language + s.projector
    lora = recipe.train.lora
    own = count_trained_weights(s, lora.rank if lora else None, tower=recipe.tunes_vision)
    rows, tokens = (
        recipe.evaluate.batch_size,
        s.image_tokens + QUESTION_TOKENS + recipe.evaluate.max_new_tokens,
    )
    terms = {
        "framework": device.baseline,
        "weights": float(4 * whole + 4 * own),
        "key-value cache": kv_cache_bytes(s, rows, tokens, 4),
        "activations": _inference(s, rows, tokens, 4, scored=rows * recipe.evaluate.max_new_tokens),
    }
    return _with_fragmentation(Peak("merge", "comparing", terms), device)


def kv_cache_bytes(s: Shapes, rows: int, tokens: int, itemsize: int) -> float:
    """Bytes of the KV cache: keys and values of every layer."""
    return 2.0 * s.layers * s.key_heads * s.head * rows * tokens * itemsize


def evaluation_peak(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """The merged model answers a batch of questions with images, and scores reference answers of at
    most `max_new_tokens` tokens.
    """
    rows, tokens = (
        recipe.evaluate.batch_size,
        s.image_tokens + QUESTION_TOKENS + recipe.evaluate.max_new_tokens,
    )
    return _inference_peak(
        "evaluate", recipe, s, device, rows, tokens, scored=rows * recipe.evaluate.max_new_tokens
    )


def chat_peak(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """One conversation that fills the context window."""
    tokens = min(recipe.language.window, s.window)
    return _inference_peak("chat", recipe, s, device, 1, tokens, scored=1)


def _inference_peak(
    step: str, recipe: Recipe, s: Shapes, device: Device, rows: int, tokens: int, *, scored: int
) -> Peak:
    itemsize = 4 if recipe.merge.dtype == "float32" else device.itemsize
    held = {
        "framework": device.baseline,
        "weights": float(itemsize * (s.language + s.vision + s.projector)),
    }
    # The tower returns all hidden states, of which one is selected.
    pictures = ENCODE_BATCH_SIZE if step == "evaluate" else 1
    seen = (
        pictures * (s.patches + 1) * (s.width * (s.vision_layers + 3) + 2 * s.vision_mlp) * itemsize
    )
    moments = [
        Peak(step, "looking", {**held, "activations": float(seen)}),
        Peak(
            step,
            "answering",
            {
                **held,
                "key-value cache": kv_cache_bytes(s, rows, tokens, itemsize),
                "activations": _inference(s, rows, tokens, itemsize, scored=scored),
            },
        ),
    ]
    return max((_with_fragmentation(peak, device) for peak in moments), key=lambda peak: peak.total)


def _inference(s: Shapes, rows: int, tokens: int, itemsize: int, *, scored: int) -> float:
    """The larger of one layer's activations, and the logits of `scored` positions, in float32, with
    their log-softmax.
    """
    n = rows * tokens
    layer = n * itemsize * (2 * s.hidden + max(4 * s.mlp, 6 * s.heads * s.head)) + rows * tokens**2
    return float(max(layer, scored * s.vocabulary * (itemsize + 8) + n * s.hidden * itemsize))
