"""Find the cheapest single change that makes a stage fit: candidates are tried in order of their
cost, and the peak of each is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..model.projectors.base import PROJECTORS
from ..recipe import Lora, Recipe

Predict = Callable[[Recipe], float]


@dataclass(frozen=True, slots=True)
class Change:
    """`keys` is the `--set` argument; `cost` describes the trade-off; `peak` is predicted, in
    bytes.
    """

    keys: str
    cost: str
    peak: float
    fits: bool

    def to_dict(self) -> dict[str, object]:
        """The JSON object of a change that was tried."""
        return {"set": self.keys, "cost": self.cost, "bytes": round(self.peak), "fits": self.fits}


def advise(
    recipe: Recipe, stage: str, memory: float, predict: Predict
) -> tuple[Change | None, list[Change]]:
    """The cheapest change with which `stage` fits into `memory`, or None; and every change that was
    tried.
    """
    tried = []
    for keys, cost, changed in candidate_changes(recipe, stage):
        peak = predict(changed)
        tried.append(Change(keys, cost, peak, peak <= memory))
        if tried[-1].fits:
            return tried[-1], tried
    return None, tried


def candidate_changes(recipe: Recipe, stage: str) -> Iterator[tuple[str, str, Recipe]]:
    """Single changes, cheapest first: those that only cost time, then those that may
    cost quality.
    """
    train = recipe.train
    asked = train.stages[stage]
    for rows in sorted(
        (
            n
            for n in range(1, asked.micro_batch_size)
            if asked.batch_size % n == 0 and _is_halved(asked.micro_batch_size, n)
        ),
        reverse=True,
    ):
        yield (
            f"{_key(stage)}.micro_batch_size={rows}",
            "the same result, somewhat slower",
            _with_stage(recipe, stage, micro_batch_size=rows),
        )
    if not train.gradient_checkpointing:
        changed = recipe.model_copy(
            update={"train": train.model_copy(update={"gradient_checkpointing": True})}
        )
        yield "train.gradient_checkpointing=true", "the same result, a third slower", changed
    if train.lora is None:
        changed = recipe.model_copy(update={"train": train.model_copy(update={"lora": Lora()})})
        yield "train.lora={}", f"LoRA of rank {Lora().rank} instead of every weight", changed
    elif not train.quantize and not train.shard:
        changed = recipe.model_copy(update={"train": train.model_copy(update={"quantize": True})})
        yield "train.quantize=true", "the frozen base in 4 bits", changed
    kind = PROJECTORS[recipe.projector.kind]
    if recipe.projector.pool == 1 and kind.refusal(2, recipe.projector.nested) is None:
        changed = recipe.model_copy(
            update={"projector": recipe.projector.model_copy(update={"pool": 2})}
        )
        yield (
            "projector.pool=2",
            "a quarter of the slots: less fine detail; LLaVA's loaders do not read it",
            changed,
        )
    for length in (n for n in (2048, 1024, 512, 256) if n < asked.max_length):
        yield (
            f"{_key(stage)}.max_length={length}",
            "longer conversations lose their last turns",
            _with_stage(recipe, stage, max_length=length),
        )
    if stage != "align" and train.lora is not None:
        for rank in (n for n in (64, 32, 16, 8) if n < train.lora.rank):
            lora = train.lora.model_copy(update={"rank": rank})
            changed = recipe.model_copy(update={"train": train.model_copy(update={"lora": lora})})
            yield f"train.lora.rank={rank}", "a smaller adapter learns less", changed


def _is_halved(micro_batch: int, rows: int) -> bool:
    """Whether `rows` is `micro_batch` halved repeatedly: a sufficient search."""
    return any(micro_batch >> times == rows for times in range(1, micro_batch.bit_length()))


def _with_stage(recipe: Recipe, stage: str, **update: Any) -> Recipe:
    asked = recipe.train.stages[stage]
    changed = {stage: asked.model_copy(update=update)}
    train = (
        {"further": {**recipe.train.further, **changed}}
        if stage in recipe.train.further
        else changed
    )
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def _key(stage: str) -> str:
    return f"train.{stage}" if stage in ("align", "instruct") else f"train.further.{stage}"
