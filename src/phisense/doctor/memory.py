"""Peak memory of each step, estimated from shapes. In bytes.

A step has phases with different live tensors; the largest is the peak. In training they are

    loading        the weights are loaded
    calibrating    the new projector runs on `CALIBRATION_IMAGES` images
    looking        held-out questions are answered, with their key-value caches
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

from ..chat.batching import places_for
from ..evaluation.predictors import ENCODE_BATCH_SIZE
from ..malloc import MMAP_THRESHOLD_BYTES
from ..model.quantized import NF4_BLOCK, NF4_SCALES_BLOCK
from ..recipe import Recipe
from ..training.eval_callback import MAX_NEW_TOKENS, eval_batch_size
from ..training.run_context import CALIBRATION_IMAGES
from . import activations, sharded
from .activations import MicroBatch
from .devices import Device
from .lengths import Lengths, measure_questions
from .shapes import Shapes

#: Memory that allocators hold in addition, as a fraction of temporary tensors. Fitted for the CPU
#: (docs/memory.md), a guess for GPUs.
FRAGMENTATION = {"cpu": 0.02, "cuda": 0.05}
#: Holes that malloc's heap holds for each byte of blocks in it: 0.33 to 1.1 in single steps of a
#: narrow model, 1.9 after 600 steps in bfloat16, with what oneDNN keeps for every length
#: (docs/memory.md). Far more is returned by `HeapCallback`.
HOLES = 1.25


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


def cast_weights(s: Shapes, x: MicroBatch) -> float:
    """Copies of the trained weights in the compute format, which autocast makes and autograd
    saves; 0 if they compute in float32.
    """
    if x.itemsize == 4:
        return 0.0
    language = s.matrix_weights + s.output if x.full_finetuning else 0
    return float(x.itemsize * (count_trained_weights(s, x.rank, tower=x.train_vision) + language))


def largest_micro_batch(recipe: Recipe, stage: str, device: Device, lengths: Lengths) -> MicroBatch:
    """The largest micro-batch of a stage: every row has the longest length and the most
    images, at least one.
    """
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
        pictures=rows * max(1, lengths.pictures),
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
    if cast := cast_weights(s, x):
        held["cast"] = cast
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
    if recipe.train.eval.questions and recipe.data.held_out:
        answering = _answering(
            recipe,
            s,
            min(eval_batch_size(recipe), recipe.train.eval.questions),
            device.itemsize,
            new=min(MAX_NEW_TOKENS, recipe.evaluate.max_new_tokens),
            losses=False,
            adapter=x.rank is not None,
        )
        moments.append(Peak(stage, "looking", {**optimizer, **answering}))
    if recipe.train.shard and device.processes > 1:
        gathered = sharded.gathered_bytes(recipe, s, 4 if full else device.itemsize, x.rank)
        moments = [
            Peak(
                one.step,
                one.moment,
                sharded.divide(one.terms, one.moment, device.processes, gathered),
            )
            for one in moments
        ]
    holes = 0.0 if device.cuda else HOLES * activations.narrow_blocks(s, x, MMAP_THRESHOLD_BYTES)
    return [
        _with_fragmentation(peak, device, holes if peak.moment in ("loss", "last layer") else 0.0)
        for peak in moments
    ]


def _with_fragmentation(peak: Peak, device: Device, holes: float = 0.0) -> Peak:
    coming_and_going = sum(
        peak.terms.get(name, 0.0) for name in ("activations", "loss", "backward")
    )
    share = FRAGMENTATION["cuda" if device.cuda else "cpu"]
    return Peak(
        peak.step, peak.moment, {**peak.terms, "fragments": holes + share * coming_and_going}
    )


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
    rows = recipe.evaluate.batch_size
    terms = {
        "framework": device.baseline,
        "weights": float(4 * whole + 4 * own),
        # the dequantized matrices, beside the file that the embeddings are used from
        "mapped": float(4 * s.matrix_weights)
        if recipe.train.quantize and not device.cuda and s.stored == "float32"
        else 0.0,
        **_answering(
            recipe,
            s,
            rows,
            4,
            new=recipe.evaluate.max_new_tokens,
            losses=True,
            adapter=lora is not None,
        ),
    }
    return _with_fragmentation(Peak("merge", "comparing", terms), device)


def kv_cache_bytes(s: Shapes, rows: int, tokens: int, itemsize: int) -> float:
    """Bytes of the KV cache: keys and values of every layer."""
    return 2.0 * s.layers * s.key_heads * s.head * rows * tokens * itemsize


def evaluation_peak(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """The merged model answers a batch of questions with images, and scores their reference
    answers.
    """
    itemsize = _stored_itemsize(recipe, device)
    answering = _answering(
        recipe,
        s,
        recipe.evaluate.batch_size,
        itemsize,
        new=recipe.evaluate.max_new_tokens,
        losses=True,
        adapter=False,
    )
    return _inference_peak("evaluate", recipe, s, device, answering)


def chat_peak(recipe: Recipe, s: Shapes, device: Device) -> Peak:
    """One conversation that fills the context window, beside empty places for the others that are
    answered at once, which take memory on a GPU only.
    """
    tokens = min(recipe.language.window, s.window)
    itemsize = _stored_itemsize(recipe, device)
    each = kv_cache_bytes(s, 1, tokens, itemsize)
    answering = {
        "key-value cache": each * (places_for(each) if device.cuda else 1),
        "activations": _inference(s, tokens, tokens, itemsize, scored=1),
    }
    return _inference_peak("chat", recipe, s, device, answering)


def _stored_itemsize(recipe: Recipe, device: Device) -> int:
    return 4 if recipe.merge.dtype == "float32" else device.itemsize


def _inference_peak(
    step: str, recipe: Recipe, s: Shapes, device: Device, answering: dict[str, float]
) -> Peak:
    itemsize = _stored_itemsize(recipe, device)
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
        Peak(step, "answering", {**held, **answering}),
    ]
    return max((_with_fragmentation(peak, device) for peak in moments), key=lambda peak: peak.total)


def _answering(
    recipe: Recipe,
    s: Shapes,
    rows: int,
    itemsize: int,
    *,
    new: int,
    losses: bool,
    adapter: bool,
) -> dict[str, float]:
    """`batch_generate` on `rows` questions: the cache of the images' prefixes is kept while a copy
    of it grows with the questions and `new` tokens of answers, one layer at a time.
    """
    asked = measure_questions(recipe, s, rows)
    pictures = asked.pictures if losses else rows  # those of `train.eval` are spread evenly
    behind = asked.question + max(new, asked.reference if losses else 0)
    whole = s.image_tokens + behind
    cache = kv_cache_bytes(s, pictures, s.image_tokens, itemsize)
    cache += kv_cache_bytes(s, rows, whole, itemsize) * (1 + 1 / s.layers)
    # one forward pass over the prefixes, one over the questions with their references
    passed = max(
        pictures * s.image_tokens, rows * (asked.question + (asked.reference if losses else 0))
    )
    scored = max(asked.references if losses else 0, rows)
    return {
        "key-value cache": cache,
        "activations": _inference(s, passed, whole, itemsize, scored=scored, adapter=adapter),
    }


def _inference(
    s: Shapes, positions: int, keys: int, itemsize: int, *, scored: int, adapter: bool = False
) -> float:
    """The larger of one layer's activations, and the logits of `scored` positions with their
    log-softmax in float32, before which bfloat16 is cast.

    In the MLP live gate and up in one tensor, the activated gate and the product; with an adapter
    beside it, gate and up four times: its own, the adapter's, that scaled, and the sum.
    """
    mlp = (8 if adapter else 4) * s.mlp
    layer = positions * itemsize * (2 * s.hidden + max(mlp, 6 * s.heads * s.head))
    logits = scored * s.vocabulary * (8 if itemsize == 4 else itemsize + 8)
    return float(max(layer + positions * keys, logits + positions * s.hidden * itemsize))
