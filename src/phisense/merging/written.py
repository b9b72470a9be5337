"""The written folder, reopened and compared with the model in memory, before it counts as merged.

Each weight must have the same bytes under the same name, none may be missing or over, and on some
probes the reopened model must answer as the one in memory did. Opening itself rejects a folder in
which a weight is missing, misshapen or without a place (parts.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import MergeError
from ..model.agreement import Outputs, compare_outputs
from ..model.quantized import tensor_bytes
from ..pipeline.results import WrittenWeights

#: The same weights may be summed in another order, since the files' memory is aligned otherwise.
MAX_LOSS_DIFFERENCE = 1e-3
MIN_SAME_ANSWERS = 0.9


def weight_digests(model: Any) -> dict[str, str]:
    """SHA-256 of each weight's dtype, shape and bytes, by its name in the state dict."""
    return {name: _digest(weight) for name, weight in model.state_dict().items()}


def _digest(weight: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(tensor_bytes(weight))
    return digest.hexdigest()


def check_weights_equal(
    folder: Path, memory: Mapping[str, str], written: Mapping[str, str]
) -> WrittenWeights:
    """A record of the weights in `folder`. Raises MergeError, naming the first, if a weight is not
    the one in memory.
    """
    other = [name for name in memory if written.get(name) != memory[name]]
    other += [name for name in written if name not in memory]
    if other:
        name = min(other)
        raise MergeError(
            "what was written is not what was merged, so it was not kept",
            got=f"{len(other)} weights that differ in {folder.name}, such as {name}",
            wanted=f"all {len(memory)} as they were in memory, bit for bit",
            do="Run it again, on another disk if it happens again; it may be failing",
        )
    whole = hashlib.sha256()
    for name in sorted(written):
        whole.update(f"{name} {written[name]}\n".encode())
    return WrittenWeights(weights=len(written), sha256=whole.hexdigest())


def check_outputs_equal(memory: Outputs, written: Outputs) -> None:
    """Raises MergeError unless the reopened model loses and answers as the one in memory, on the
    same probes.
    """
    found = compare_outputs(memory, written)
    if memory.loss != memory.loss and written.loss != written.loss:
        return  # neither computes numbers, which the gate rejects
    if (
        abs(found.delta_loss) <= MAX_LOSS_DIFFERENCE * max(1.0, memory.loss)
        and found.same_answers >= MIN_SAME_ANSWERS
    ):
        return
    raise MergeError(
        "the written folder opens as another model than the merged one, so it was not kept",
        got=f"loss {found.delta_loss:+.5f} and {found.same_answers:.1%} equal answers",
        wanted="the loss and the answers of the model in memory, whose weights it has",
        do=(
            "This is a fault of phisense, or of a transformers that it does not know; please report"
            " it with phisense doctor's output"
        ),
    )
