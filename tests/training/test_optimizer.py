"""Which optimizer trains what, and Muon's state through a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from phisense.recipe import Stage
from phisense.training.optimizer import CombinedOptimizer, stage_optimizer

STAGE = Stage(learning_rate=1e-3, projector_learning_rate=4e-2, projector_optimizer="muon")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.multi_modal_projector = nn.Linear(4, 3)
        self.lora = nn.Linear(3, 3, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def stepped(model: Small, optimizer: torch.optim.Optimizer, times: int, start: int = 0) -> Small:
    for i in range(start, start + times):
        torch.manual_seed(i)
        optimizer.zero_grad()
        model.lora(
            model.multi_modal_projector(torch.randn(8, 4) * torch.tensor([9.0, 3.0, 1.0, 0.3]))
        ).square().sum().backward()
        optimizer.step()
    return model


def test_muon_takes_the_projectors_matrices_and_adamw_the_rest() -> None:
    model = Small()
    optimizer = stage_optimizer(model.named_parameters(), STAGE)
    assert isinstance(optimizer, CombinedOptimizer)
    held = [
        (type(part).__name__, group["lr"], group["params"])
        for part in optimizer.optimizers
        for group in part.param_groups
    ]
    projector = model.multi_modal_projector
    wanted = [
        ("Muon", 4e-2, projector.weight),
        ("AdamW", 1e-3, projector.bias),
        ("AdamW", 1e-3, model.lora.weight),
    ]
    assert [(name, rate) for name, rate, _ in held] == [(name, rate) for name, rate, _ in wanted]
    assert all(
        len(params) == 1 and params[0] is p
        for (_, _, params), (_, _, p) in zip(held, wanted, strict=True)
    )


def test_adamw_alone_unless_asked() -> None:
    optimizer = stage_optimizer(
        Small().named_parameters(), STAGE.model_copy(update={"projector_optimizer": "adamw"})
    )
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [
        (4e-2, 2),
        (1e-3, 1),
    ]


def test_a_muon_step_is_equally_long_in_all_directions() -> None:
    """The singular values of its step lie together, where those of the gradient are far apart."""
    model = Small()
    before = model.multi_modal_projector.weight.detach().clone()
    optimizer = stage_optimizer(model.named_parameters(), STAGE)
    stepped(model, optimizer, 1)
    step = torch.linalg.svdvals(model.multi_modal_projector.weight.detach() - before)
    assert model.multi_modal_projector.weight.grad is not None
    gradient = torch.linalg.svdvals(model.multi_modal_projector.weight.grad)
    assert step.max() / step.min() < 3 < 10 < gradient.max() / gradient.min()


def test_muon_does_what_torchs_does() -> None:
    """Up to the bfloat16 that torch's computes in: the same direction, the same length."""
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    start = ours.multi_modal_projector.weight.detach().clone()
    for model, optimizer in (
        (ours, stage_optimizer(ours.named_parameters(), STAGE)),
        (
            theirs,
            torch.optim.Muon(
                [theirs.multi_modal_projector.weight],
                lr=4e-2,
                weight_decay=0.0,
                adjust_lr_fn="match_rms_adamw",
            ),
        ),
    ):
        stepped(model, optimizer, 1)
    a = ours.multi_modal_projector.weight.detach() - start
    b = theirs.multi_modal_projector.weight.detach() - start
    assert float((a - b).norm() / b.norm()) < 0.03


@pytest.mark.parametrize("restored", [True, False])
def test_going_on_from_a_saved_state_is_going_on(restored: bool) -> None:
    """And, as the control, going on without it is not."""
    torch.manual_seed(0)
    model = Small()
    optimizer = stage_optimizer(model.named_parameters(), STAGE)
    stepped(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = stage_optimizer(other.named_parameters(), STAGE)
    if restored:
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weight = stepped(model, optimizer, 3, start=3).multi_modal_projector.weight
    again = stepped(other, resumed, 3, start=3).multi_modal_projector.weight
    assert torch.equal(weight, again) is restored


def test_a_schedule_moves_every_rate() -> None:
    optimizer = stage_optimizer(Small().named_parameters(), STAGE)
    assert isinstance(optimizer, CombinedOptimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for part in optimizer.optimizers for group in part.param_groups] == [
        2e-2,
        5e-4,
        5e-4,
    ]
