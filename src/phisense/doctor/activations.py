"""What the forward pass keeps for the backward pass, and what lives for a moment beside it. Bytes.

    B rows, T tokens a row, N = B T; H width, M MLP width, a = heads x head width, k = key heads x head width, V vocabulary,
    r rank; c bytes of a number in what the device computes (4, or 2 under autocast)

What autograd keeps of one layer, in the order of the code (transformers' Phi-3, PEFT's LoRA):

    norm        its input in float32, twice a layer                                   2 x 4 N H
    matrices    with LoRA the input of each (with dropout: the thinned one and the    c N (2H + a + M), and c' N r each
                mask) and the rank-r middle; without LoRA nothing, the base is frozen
    attention   queries, keys, values, the output and a sum for each row; in spans    c N (a + 2 k + a), 4 N heads
                also keys and values anew where one span is behind another
    MLP         gate and up in one tensor, and the activated gate                     c N (2M + M)

In full fine-tuning each matrix keeps its input as with LoRA, and each norm what it multiplies by its weights, c N H. A vision tower that is
trained along keeps of each layer that is read what the table says, over the P patches and a class row of every picture.

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
    spans: bool
    cuda: bool
    pictures: int
    scores: int  # of a row, that attention in spans computes: as large is its mask
    behind: int  # keys of a row's spans that are behind another
    full: bool = False  # every weight of the language part is trained
    tower: bool = False  # LoRA in the vision tower, too

    @property
    def positions(self) -> int:
        return self.rows * self.tokens


def layer(s: Shapes, x: Setting) -> float:
    """What autograd keeps of one decoder layer."""
    n, c = x.positions, x.number
    attended, keys = s.heads * s.head, s.key_heads * s.head
    kept = 2.0 * n * (4 * s.hidden + 4)
    kept += c * n * attended + _keys_and_values(x, attended, keys)
    kept += n * s.heads * 4
    kept += c * n * 3 * s.mlp
    kept += 2 * c * n * s.hidden if x.full else 0
    for inputs, _ in s.matrices if x.rank is not None or x.full else ():
        kept += c * n * inputs + c * n * (x.rank or 0)
        if x.dropout:
            kept += n * inputs * (1 if x.cuda else c)
    return kept + c * n * attended  # the fused kernel's output; the output matrix reads a copy in another order


def _keys_and_values(x: Setting, attended: int, keys: int) -> float:
    """Keys are made anew by the rotation. Values are a part of what the fused matrix made and kept with all of it, unless they are
    copied: in spans for heads that share keys, and for the cache that is filled along without checkpointing."""
    n, c = x.positions, x.number
    behind = x.rows * x.behind * 2 * attended if x.spans else 0
    copied = not x.checkpointing or (x.spans and attended != keys)
    own = 2 * (attended if x.spans else keys) if copied else keys + attended + 2 * keys
    return float(c * (n * own + behind))


def saved(s: Shapes, x: Setting) -> float:
    """Everything that autograd holds when the loss is known, the loss's own tensors not counted."""
    layers = s.layers * (x.number * x.positions * s.hidden if x.checkpointing else layer(s, x))
    last_norm = x.positions * (4 * s.hidden + 4)
    if x.full:  # and the output matrix keeps its input
        last_norm += x.number * (x.positions + x.rows * x.supervised) * s.hidden
    return layers + projector(s, x) + last_norm + around(s, x) + tower(s, x)


def tower(s: Shapes, x: Setting) -> float:
    """A vision tower under training. Norms keep their input, twice a layer, and their output for the matrices behind; attention queries,
    keys, values and its output; the MLP its middle before, within and after the activation. The layers that are not read run all the same:
    nothing in them is trained, so they keep no matrix's input."""
    if not x.tower:
        return 0.0
    rows, unread = x.pictures * (s.patches + 1), s.vision_layers - s.vision_read
    if x.checkpointing:
        return float(x.number * s.vision_layers * rows * s.width)
    alone = 6 * s.width + 2 * s.vision_mlp + 4 + s.vision_heads  # with each norm's mean and spread, and attention's sums
    inputs = 2 * s.width + s.vision_mlp + 6 * (x.rank or 0) + ((7 * s.width + s.vision_mlp) if x.dropout else 0)
    return float(x.number * rows * (s.vision_read * (alone + inputs) + unread * alone))


def around(s: Shapes, x: Setting) -> float:
    """The attention mask, the rotation's angles, and which positions are a picture's."""
    mask = x.rows * (4 * x.scores if x.spans else x.tokens**2)
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
    return max(mlp, c * n * 4 * s.heads * s.head) + 3 * c * n * s.hidden + workspace(s, x)


def workspace(s: Shapes, x: Setting) -> float:
    """NF4: the largest matrix as the numbers it stands for."""
    return float(x.number * max(a * b for a, b in s.matrices)) if x.quantise else 0.0
