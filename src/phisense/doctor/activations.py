"""Activation memory of training: what autograd saves for the backward pass, and temporaries. In
bytes.

    B rows, T tokens per row, N = B T; H hidden size, M MLP size, a = heads x head size,
    k = key heads x head size, V vocabulary size, r LoRA rank;
    c bytes per element of the compute format (4, or 2 under autocast)

What autograd saves of one layer, in the order of the code (transformers' Phi-3, PEFT's LoRA):

    norm        its input in float32, twice per layer; of queries and      2 x 4 N H
                keys that are normalized (Qwen3), too                      4 N (a + k)
    matrices    with LoRA: their inputs (of those that read the same one,  c N (2H + a + M), and
                with dropout each its own, dropped out, and the mask) and  c N r each
                the rank-r output of A;
                without LoRA nothing, because the base is frozen
    attention   queries, keys, values, the output and logsumexp per row;   c N (a + 2 k + a), and
                for varlen also copies of the keys and values where one    4 N heads
                span follows another, and all of it in float32 (c = 4)
    MLP         gate and up in one tensor, and the activated gate          c N (2M + M)

In full fine-tuning each matrix saves its input as with LoRA, and each norm the tensor that its
weights multiply, in float32, 4 N H. A trained vision tower saves the same for each used layer, over
the P patches and a class row of every image. Under autocast the trained weights are copied, too
(`memory.cast_weights`).

Tests compare this with what autograd actually saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shapes


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The shape and settings of one micro-batch in training."""

    rows: int
    tokens: int
    supervised: int  # supervised tokens per row
    rank: int | None  # None: no LoRA (alignment)
    dropout: float
    checkpointing: bool
    quantize: bool
    itemsize: int  # bytes: 4, or 2 under autocast
    varlen: bool
    cuda: bool
    pictures: int
    scores: int  # attention scores per row in varlen attention; the size of its mask
    behind: int  # keys of a row's spans that follow another span
    full_finetuning: bool = False  # every weight of the language part is trained
    train_vision: bool = False  # LoRA in the vision tower, too

    @property
    def positions(self) -> int:
        """Tokens of the micro-batch, padding included."""
        return self.rows * self.tokens

    @property
    def attention_itemsize(self) -> int:
        """Bytes of an element in attention: attention in spans computes in float32."""
        return 4 if self.varlen else self.itemsize


def decoder_layer(s: Shapes, x: MicroBatch) -> float:
    """What autograd saves of one decoder layer."""
    n, c = x.positions, x.itemsize
    attended, keys = s.heads * s.head, s.key_heads * s.head
    kept = 2.0 * n * (4 * s.hidden + 4)
    if s.head_norms:
        kept += n * 4 * (s.heads + s.key_heads) * (s.head + 1)
        kept += 4 * n * (s.heads + s.key_heads) * s.head if x.full_finetuning else 0
    kept += x.attention_itemsize * n * attended + _keys_and_values(x, attended, keys)
    kept += n * s.heads * 4
    kept += c * n * 3 * s.mlp
    kept += 2 * 4 * n * s.hidden if x.full_finetuning else 0
    kept += c * n * sum(_matrix_inputs(s, x))
    for inputs, _ in s.matrices if x.rank is not None or x.full_finetuning else ():
        kept += c * n * (x.rank or 0)
        if x.dropout:
            kept += n * inputs * (1 if x.cuda else c)
    # the fused kernel's output; the output projection reads a transposed copy
    return kept + x.attention_itemsize * n * attended


def _matrix_inputs(s: Shapes, x: MicroBatch) -> list[int]:
    """Widths of the saved inputs of a layer's matrices: of those that read the same, one. Dropout
    makes a copy for each, and so does autocast of what is float32, as in full fine-tuning.
    """
    if x.rank is None and not x.full_finetuning:
        return []
    if x.dropout or (x.full_finetuning and x.itemsize < 4):
        return [inputs for inputs, _ in s.matrices]
    return [s.hidden, s.heads * s.head, s.hidden, s.mlp]


def _keys_and_values(x: MicroBatch, attended: int, keys: int) -> float:
    """Rotary embedding creates new keys. Values are a view of the fused QKV output, which is saved
    whole, unless they are copied: in varlen attention with grouped-query heads, and for the KV
    cache that is filled without checkpointing.
    """
    n, c = x.positions, x.attention_itemsize
    behind = x.rows * x.behind * 2 * attended if x.varlen else 0
    copied = not x.checkpointing or (x.varlen and attended != keys)
    own = 2 * (attended if x.varlen else keys) if copied else keys + attended + 2 * keys
    return float(c * (n * own + behind))


def narrow_blocks(s: Shapes, x: MicroBatch, threshold: int) -> float:
    """Of what autograd saves of all layers, the blocks smaller than `threshold`: on a CPU they come
    from malloc's heap, where they leave holes.
    """
    n, c = x.positions, x.itemsize
    attended = s.heads * s.head
    blocks = [4 * n * s.hidden] * 2 + [c * n * s.mlp]
    blocks += [x.attention_itemsize * n * attended] * 5
    fused = any(outputs == 2 * s.mlp for _, outputs in s.matrices)  # gate and up in one tensor
    blocks += [2 * c * n * s.mlp] if fused else [c * n * s.mlp] * 2
    if s.head_norms:
        blocks += [4 * n * heads * s.head for heads in (s.heads, s.key_heads)]
    blocks += [c * n * inputs for inputs in _matrix_inputs(s, x)]
    small = sum(block for block in blocks if block < threshold)
    if not x.checkpointing:
        return float(s.layers * small)
    entered = c * n * s.hidden  # the input of each layer; all of it only of one layer at a time
    return float(small + (s.layers * entered if entered < threshold else 0))


def saved_for_backward(s: Shapes, x: MicroBatch) -> float:
    """Everything that autograd holds after the forward pass, except the tensors of the loss."""
    layers = s.layers * (
        x.itemsize * x.positions * s.hidden if x.checkpointing else decoder_layer(s, x)
    )
    last_norm = x.positions * (4 * s.hidden + 4)
    if x.full_finetuning:  # the output matrix saves its input, too
        last_norm += x.itemsize * (x.positions + x.rows * x.supervised) * s.hidden
    return layers + projector(s, x) + last_norm + mask_and_rotary(s, x) + vision_tower(s, x)


def vision_tower(s: Shapes, x: MicroBatch) -> float:
    """A trained vision tower. Norms save their input, twice per layer, and their output for the
    matrices after them; attention saves queries, keys, values and its output; the MLP its hidden
    layer before, within and after the activation. The unused last layers run, too, but nothing in
    them is trained, so no matrix saves its input.
    """
    if not x.train_vision:
        return 0.0
    rows, unread = x.pictures * (s.patches + 1), s.vision_layers - s.vision_read
    if x.checkpointing:
        return float(x.itemsize * s.vision_layers * rows * s.width)
    # including the statistics of each norm and the logsumexp of attention
    alone = 6 * s.width + 2 * s.vision_mlp + 4 + s.vision_heads
    inputs = (
        2 * s.width
        + s.vision_mlp
        + 6 * (x.rank or 0)
        + ((7 * s.width + s.vision_mlp) if x.dropout else 0)
    )
    return float(x.itemsize * rows * (s.vision_read * (alone + inputs) + unread * alone))


def mask_and_rotary(s: Shapes, x: MicroBatch) -> float:
    """The attention mask, the rotary cosines and sines, and the mask of image positions."""
    mask = x.rows * (4 * x.scores if x.varlen else x.tokens**2)
    return mask + 2 * x.tokens * s.head * x.itemsize + x.positions


def projector(s: Shapes, x: MicroBatch) -> float:
    """Each linear layer saves its input, and each activation between two of them its own."""
    if not s.projector_linears:
        return 0.0
    rows = x.pictures * s.image_tokens
    kept = x.pictures * (s.patches + 1) * s.width * 4
    for number, (inputs, outputs) in enumerate(s.projector_linears):
        kept += rows * inputs * 4 if number else 0
        kept += rows * outputs * 4 if number + 1 < len(s.projector_linears) else 0
    return float(kept)


def loss_peak(s: Shapes, x: MicroBatch) -> float:
    """Logits are computed at supervised positions only. At the peak three float32 copies are live:
    log-probabilities, and two gradients of them.
    """
    return 12.0 * x.rows * x.supervised * s.vocabulary


def backward_peak(s: Shapes, x: MicroBatch) -> float:
    """Temporary gradients in the backward pass of one layer, and a matrix dequantized for it."""
    n, c = x.positions, x.itemsize
    mlp = c * n * 5 * s.mlp
    return max(mlp, c * n * 4 * s.heads * s.head) + 3 * c * n * s.hidden + workspace(s, x)


def workspace(s: Shapes, x: MicroBatch) -> float:
    """NF4: the largest matrix, dequantized."""
    return float(x.itemsize * max(a * b for a, b in s.matrices)) if x.quantize else 0.0
