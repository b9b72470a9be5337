"""The one comparison of a model with its reference, against figures computed by hand; a gate that
admits what is within its limits and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from phisense.model.agreement import Agreement, Gate, Outputs, compare_outputs


def outputs(seed: int = 0) -> Outputs:
    torch.manual_seed(seed)
    return Outputs([[1, 2], [3]], 1.5, [torch.randn(5, 7), torch.randn(2, 7)])


def test_a_model_agrees_with_itself() -> None:
    assert compare_outputs(outputs(), outputs()) == Agreement(
        positions=7,
        largest_difference=0.0,
        kl=0.0,
        top1=1.0,
        same_answers=1.0,
        delta_loss=0.0,
    )


def test_figures_are_those_of_the_formulas() -> None:
    one, other = outputs(), outputs(1)
    other = replace(other, answers=[(1, 2), (4,)], loss=2.0)
    found = compare_outputs(one, other)
    a, b = torch.cat(list(one.logits)).double(), torch.cat(list(other.logits)).double()
    p, q = a.softmax(1), b.softmax(1)
    assert found.largest_difference == pytest.approx(float((a - b).abs().max() / a.std()))
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert found.top1 == pytest.approx(float((a.argmax(1) == b.argmax(1)).double().mean()))
    assert (found.positions, found.same_answers, found.delta_loss) == (7, 0.5, 0.5)


def test_what_was_not_asked_is_not_a_number() -> None:
    found = compare_outputs(Outputs(loss=1.0), Outputs(loss=1.0))
    assert found.delta_loss == 0.0
    unknown = (found.kl, found.top1, found.largest_difference, found.same_answers)
    assert all(map(math.isnan, unknown))


def test_another_number_of_probes_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare_outputs(outputs(), replace(outputs(), answers=[[1, 2]]))


WITHIN = Agreement(
    positions=7, largest_difference=0.1, kl=0.1, top1=0.9, same_answers=0.9, delta_loss=0.1
)
GATE = Gate(max_difference=0.1, max_kl=0.1, min_top1=0.9, min_same_answers=0.9, max_delta_loss=0.1)


def test_the_gate_admits_its_limits() -> None:
    assert GATE.admits(WITHIN)
    assert Gate().admits(Agreement())


@pytest.mark.parametrize("bad", [0.2, math.nan], ids=["beyond", "not a number"])
@pytest.mark.parametrize("figure", ["largest_difference", "kl", "delta_loss"])
def test_the_gate_rejects_more(figure: str, bad: float) -> None:
    assert not GATE.admits(replace(WITHIN, **{figure: bad}))


@pytest.mark.parametrize("bad", [0.8, math.nan], ids=["beyond", "not a number"])
@pytest.mark.parametrize("figure", ["top1", "same_answers"])
def test_the_gate_rejects_less(figure: str, bad: float) -> None:
    assert not GATE.admits(replace(WITHIN, **{figure: bad}))


def test_logits_that_are_no_numbers_agree_with_nothing() -> None:
    broken = outputs()
    broken.logits[1][1, 3] = math.nan
    found = compare_outputs(outputs(), broken)
    assert math.isnan(found.kl)
    assert math.isnan(found.largest_difference)
