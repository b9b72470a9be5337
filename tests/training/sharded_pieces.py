"""A model of a few weights that two processes share, stopped and gone on with by another number of
them: what each process finds, for test_sharded_pieces.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from phisense.model.sharded_files import read_rows, write_gathered
from phisense.model.sharding import (
    is_linear,
    is_sharded_module,
    local,
    local_rows,
    root_gathered,
    shard_module,
    shard_root,
    whole,
)
from phisense.training.finite_differences import _numeric, _random_like, dot, norm_of
from phisense.training.optimizer import CombinedOptimizer, Muon
from phisense.training.optimizer_state import (
    STATE_FILE,
    WHOLE_STATE_FILE,
    load_moments,
    save_moments,
)

WEIGHTS = "weights.safetensors"
CPU = torch.device("cpu")
BATCHES = 6
Steps = list[tuple[float, float]]


class Tiny(nn.Module):
    """Widths that two processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.multi_modal_projector = nn.Linear(6, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 7), nn.Linear(7, 6)])
        self.head = nn.Linear(6, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.table(ids)
        if pixel_values is not None:
            hidden = hidden + self.multi_modal_projector(pixel_values)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        logits: torch.Tensor = self.head(hidden)
        return logits.clone()


def made(*, shard: bool) -> tuple[Tiny, CombinedOptimizer]:
    """A model with its optimizers: Muon for the projector's matrix, AdamW at two rates."""
    model = Tiny()
    if shard:
        for group in (*model.layers, model.table, model.head):
            shard_module(group, CPU)
        shard_root(model, CPU)
    matrix = model.multi_modal_projector.weight
    rest = [weight for weight in model.parameters() if weight is not matrix]
    adamw = torch.optim.AdamW([{"params": rest[:2], "lr": 0.01}, {"params": rest[2:], "lr": 0.02}])
    return model, CombinedOptimizer(Muon([matrix], 0.05, 0.01), adamw)


def take_steps(
    model: Tiny, optimizer: Any, batches: Iterable[int], rank: int = 0, world: int = 1
) -> Steps:
    """Losses and gradient norms. The first half of each batch has images, the other has none, so of
    two processes one never has any.
    """
    found = []
    for number in batches:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(0, 11, (4, 5), generator=generator)
        images = torch.randn(4, 5, 6, generator=generator)
        total = torch.zeros((), dtype=torch.float64)
        for row in range(rank * 4 // world, (rank + 1) * 4 // world):
            some = ids[row : row + 1]
            logits = model(some, pixel_values=images[row : row + 1]) if row < 2 else model(some)
            loss = nn.functional.cross_entropy(logits[0], some[0], reduction="sum") / 20 * world
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if world > 1:
            torch.distributed.all_reduce(total)
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3))
        optimizer.step()
        optimizer.zero_grad()
        found.append((float(total) / world, float(norm)))
    return found


def weights_of(model: Tiny) -> dict[str, torch.Tensor]:
    return {name: whole(weight.detach()) for name, weight in model.named_parameters()}


def resumed(folder: Path, *, shard: bool) -> tuple[Tiny, CombinedOptimizer]:
    """As it was when `folder` was written, in as many processes as run now."""
    model, optimizer = made(shard=shard)
    with safe_open(folder / WEIGHTS, "pt") as file, torch.no_grad():
        for name, weight in model.named_parameters():
            read_rows(file, name, local(weight), local_rows(weight))
    load_moments(optimizer, model, folder)
    return model, optimizer


def train_alone(one: Path) -> tuple[Steps, dict[str, torch.Tensor]]:
    """One process, with a checkpoint as Trainer writes it behind the third step."""
    model, optimizer = made(shard=False)
    steps = take_steps(model, optimizer, range(3))
    save_file(weights_of(model), one / WEIGHTS)
    torch.save(optimizer.state_dict(), one / WHOLE_STATE_FILE)
    return steps + take_steps(model, optimizer, range(3, BATCHES)), weights_of(model)


def train_together(rank: int, port: int, one: str, two: str) -> None:
    """One of two processes: train, write a checkpoint into `two`, go on from it and from that in
    `one`, and say in `two`/found-RANK.json what came of it.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    folder, first = Path(two), rank == 0
    model, optimizer = made(shard=True)
    steps = take_steps(model, optimizer, range(3), rank, 2)
    write_gathered(dict(model.named_parameters()), folder / WEIGHTS if first else None)
    save_moments(optimizer, model, folder / STATE_FILE if first else None)
    torch.distributed.barrier()
    steps += take_steps(model, optimizer, range(3, BATCHES), rank, 2)
    weights = weights_of(model)
    if first:
        save_file(weights, folder / "end.safetensors")
    found: dict[str, Any] = {"steps": steps}
    for name, source in (("again", folder), ("from one", Path(one))):
        other, its = resumed(source, shard=True)
        found[name] = take_steps(other, its, range(3, BATCHES), rank, 2)
        found[f"{name}, weights"] = largest(weights, weights_of(other))
    found |= measured(model)
    found["after questions"] = questions_change_nothing(model, optimizer, rank)
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def measured(model: Tiny) -> dict[str, Any]:
    """What the gradient check computes of shards, and of the same tensors in one piece."""
    shards: Sequence[Any] = [weight.detach() for weight in model.parameters()]
    pieces = [whole(shard) for shard in shards]
    direction = _random_like(list(model.parameters()), torch.Generator().manual_seed(3))
    ids = torch.arange(10).view(2, 5)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    loss().backward()  # type: ignore[no-untyped-call]
    gradient = [weight.grad for weight in model.parameters() if weight.grad is not None]
    numeric = _numeric(list(model.parameters()), direction, 1e-2, loss)
    model.zero_grad()
    return {
        "norms": (norm_of(shards), norm_of(pieces)),
        "products": (dot(shards, shards), dot(pieces, pieces)),
        "direction": norm_of(direction),
        "slope": (numeric, dot(gradient, direction)),
        "moved back": largest(
            dict(enumerate(pieces)),  # type: ignore[arg-type]
            {i: whole(one.detach()) for i, one in enumerate(model.parameters())},  # type: ignore[misc]
        ),
        "held": sum(local(one).numel() for one in shards) / sum(one.numel() for one in pieces),
        "linear": (is_linear(model.layers[0]), is_linear(model), is_sharded_module(model)),
    }


def questions_change_nothing(model: Tiny, optimizer: Any, rank: int) -> bool:
    """Modules are called without the root, as when questions are answered; then training goes on
    with what the root holds now, not with what it had gathered.
    """
    image = torch.ones(1, 5, 6)
    with root_gathered(model), torch.inference_mode():
        before = model.multi_modal_projector(image)
        model(torch.zeros(1, 5, dtype=torch.long))
    take_steps(model, optimizer, [0], rank, 2)
    with root_gathered(model), torch.inference_mode():
        after = model.multi_modal_projector(image)
    return not torch.equal(before, after)
