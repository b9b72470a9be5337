"""What the forward pass keeps for the backward pass, and what lives for a moment beside it. Bytes.

    B rows, T tokens a row, N = B T; H width, M MLP width, a = heads x head width, k = key heads x head width, V vocabulary,
    r rank; c bytes of a number in what the device computes (4, or 2 under autocast)

What autograd keeps of one layer, in the order of the code (transformers' Phi-3, PEFT's LoRA):

    norm        its input in float32, twice a layer                                   2 x 4 N H
    matrices    with LoRA the input of each (with dropout: the thinned one and the    c N (2H + a + M), and c' N r each
                mask) and the rank-r middle; without LoRA nothing, the base is frozen
    attention   queries, keys, values; plain attention also the probabilities in      c N (a + 2 a), 4 B heads T^2
                float32, fused attention its output and a sum for each row
    MLP         gate and up in one tensor, and the activated gate                     c N (2M + M)

Tests compare this with what autograd really saved.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shapes


@dataclass(frozen=True, slots=True)
class Setting:
    """One micro-batch as it is computed."""

    rows: int
    tokens: int
    supervised: int  # tokens of a row that have a loss
    rank: int | None  # None: no LoRA (alignment)
    dropout: float
    checkpointing: bool
    quantise: bool
    number: int  # bytes: 4, or 2 under autocast
    eager: bool
    cuda: bool
    pictures: int

    @property
    def positions(self) -> int:
        return self.rows * self.tokens


def layer(s: Shapes, x: Setting) -> float:
    """What autograd keeps of one decoder layer."""
    n, c = x.positions, x.number
    attended, keys = s.heads * s.head, s.key_heads * s.head
    kept = 2.0 * n * (4 * s.hidden + 4)
    kept += c * n * attended + _keys_and_values(x, attended, keys)
    if x.eager:
        kept += x.rows * s.heads * x.tokens**2 * (4 if c == 4 else 6)
    else:
        kept += x.rows * s.heads * x.tokens * 4
    kept += c * n * 3 * s.mlp
    for inputs, _ in s.matrices if x.rank is not None else ():
        kept += c * n * inputs + c * n * (x.rank or 0)
        if x.dropout:
            kept += n * inputs * (1 if x.cuda else c)
    if not x.eager:
        kept += c * n * attended  # the fused kernel's output; the output matrix reads a copy in another order
    return kept


def _keys_and_values(x: Setting, attended: int, keys: int) -> float:
    """Keys are made anew by the rotation. Values are a part of what the fused matrix made, whole: copied for plain attention
    over several rows and by the cache that is filled along without checkpointing, kept with all of it otherwise."""
    n, c = x.positions, x.number
    if x.eager and (attended != keys or not x.checkpointing or x.rows > 1):
        return c * n * 2 * attended
    if not x.eager and not x.checkpointing:
        return c * n * 2 * keys
    return c * n * (keys + attended + 2 * keys)


def saved(s: Shapes, x: Setting) -> float:
    """Everything that autograd holds when the loss is known, the loss's own tensors not counted."""
    layers = s.layers * (x.number * x.positions * s.hidden if x.checkpointing else layer(s, x))
    return layers + projector(s, x) + x.positions * (4 * s.hidden + 4) + around(s, x)


def around(s: Shapes, x: Setting) -> float:
    """The attention mask, the rotation's angles, and which positions are a picture's."""
    mask = x.rows * x.tokens**2 * (4 if x.eager else 1)
    return mask + 2 * x.tokens * s.head * x.number + x.positions


def projector(s: Shapes, x: Setting) -> float:
    """Each linear layer keeps its input, each activation between two its own."""
    if not s.projector_linears:
        return 0.0
    rows = x.pictures * s.slots
    kept = x.pictures * (s.patches + 1) * s.width * 4
    for number, (inputs, outputs) in enumerate(s.projector_linears):
        kept += rows * inputs * 4 if number else 0
        kept += rows * outputs * 4 if number + 1 < len(s.projector_linears) else 0
    return float(kept)


def loss(s: Shapes, x: Setting) -> float:
    """Logits are made where there is a loss. At the peak three float32 copies live: log-probabilities, and two gradients of them."""
    return 12.0 * x.rows * x.supervised * s.vocabulary


def kept_by_loss(s: Shapes, x: Setting) -> float:
    """What autograd keeps of the loss: the log-probabilities and the labels."""
    return x.rows * x.supervised * (4.0 * s.vocabulary + 8)


def momentary(s: Shapes, x: Setting) -> float:
    """Gradients that live for a moment in the backward pass of one layer, and a matrix dequantised for it."""
    n, c = x.positions, x.number
    mlp = c * n * 5 * s.mlp
    attention = x.rows * s.heads * x.tokens**2 * 12 if x.eager else c * n * 4 * s.heads * s.head
    return max(mlp, attention) + 3 * c * n * s.hidden + workspace(s, x)


def workspace(s: Shapes, x: Setting) -> float:
    """NF4: the largest matrix as the numbers it stands for."""
    return float(x.number * max(a * b for a, b in s.matrices)) if x.quantise else 0.0
