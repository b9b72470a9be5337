"""Calibration: slots as large as embeddings, whatever the features look like; and what an
uncalibrated projector gives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from phisense import Phi3WithProjector
from phisense.model.calibrate import calibrate
from phisense.model.trainable import freeze_all_but_projector
from phisense.recipe import Projector


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the parts are held in; a projector that is trained is float32 in any case."""
    found: torch.dtype = request.param
    return found


@pytest.fixture
def lopsided() -> torch.Tensor:
    """Features as CLIP's are: channels far from zero, some far larger than others, one that never
    changes.
    """
    torch.manual_seed(0)
    spread = torch.logspace(-1, 1.5, 16)
    features = torch.randn(32, 16, 16) * spread + 3 * spread
    features[..., 5] = 7.0
    return features


def assembled(
    parts: tuple[str, str], dtype: torch.dtype, projector: Projector | None = None
) -> Phi3WithProjector:
    built = Phi3WithProjector.assemble(*parts, projector, dtype=dtype)
    freeze_all_but_projector(built)
    return built


@pytest.mark.slow
@pytest.mark.parametrize(
    "projector",
    [Projector(), Projector(kind="linear"), Projector(pool=2)],
    ids=["mlp", "linear", "pooled"],
)
def test_slots_become_as_large_as_embeddings(
    parts: tuple[str, str], lopsided: torch.Tensor, projector: Projector, dtype: torch.dtype
) -> None:
    built = assembled(parts, dtype, projector)
    table = built.model.get_input_embeddings().weight
    found = calibrate(built.projector, lopsided, table)
    with torch.inference_mode():
        slots = built.projector(lopsided)
    assert found["before"] > 3 * float(table.detach().float().std()), (
        "the control: a fresh projector misses the scale"
    )
    assert float(slots.std()) == pytest.approx(float(table.detach().float().std()), rel=1e-3)
    assert found["after"] == pytest.approx(found["embeddings"], rel=1e-3)


def test_every_channel_counts_alike(
    parts: tuple[str, str], lopsided: torch.Tensor, dtype: torch.dtype
) -> None:
    """The slots move as far with a small channel as with a large one; before, the large ones
    decided alone.
    """
    built = assembled(parts, dtype)

    def moved_by(channel: int) -> float:
        changed = lopsided.clone()
        changed[..., channel] += lopsided[..., channel].std()
        with torch.inference_mode():
            return float((built.projector(changed) - built.projector(lopsided)).norm())

    small, large = 0, 15
    assert moved_by(large) > 20 * moved_by(small)
    calibrate(built.projector, lopsided, built.model.get_input_embeddings().weight)
    assert 0.5 < moved_by(large) / moved_by(small) < 2


def test_slots_vary_as_words_do(
    parts: tuple[str, str], lopsided: torch.Tensor, dtype: torch.dtype
) -> None:
    """The last layer's columns span what the embeddings span, and as far; a fresh projector's are
    unlike them.
    """
    built = assembled(parts, dtype)
    table = built.model.get_input_embeddings().weight.detach()
    words = torch.cov(table.float()[table.norm(dim=1) > 0].T)

    def likeness() -> float:
        weight = built.projector.linear_2.weight.detach()
        mine = weight @ weight.T
        return float((mine * words).sum() / mine.norm() / words.norm())

    assert likeness() < 0.95
    calibrate(built.projector, lopsided, table)
    assert likeness() > 0.999


def test_the_same_pictures_calibrate_the_same(
    parts: tuple[str, str], lopsided: torch.Tensor, dtype: torch.dtype
) -> None:
    def weights() -> dict[str, Any]:
        built = assembled(parts, dtype)
        calibrate(built.projector, lopsided, built.model.get_input_embeddings().weight)
        return dict(built.projector.state_dict())

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
