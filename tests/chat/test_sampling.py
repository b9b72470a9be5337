"""The one sampler of next tokens: greedy, by temperature and nucleus; no token from logits that are
no numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phisense.chat.engine import Sampling
from phisense.chat.sampling import TokenSampler
from phisense.errors import ChatError

SAMPLER = TokenSampler("Do that")
CHANCES = [0.5, 0.3, 0.15, 0.05]


def drawn(times: int, sampling: Sampling, sampler: TokenSampler = SAMPLER) -> list[int]:
    logits = torch.log(torch.tensor(CHANCES))
    return [sampler.sample(logits, sampling) for _ in range(times)]


def test_temperature_zero_is_greedy() -> None:
    assert set(drawn(20, Sampling(temperature=0.0))) == {0}


def test_the_nucleus_holds_the_likeliest_alone() -> None:
    assert set(drawn(20, Sampling(temperature=1.0, top_p=0.4))) == {0}
    assert set(drawn(200, Sampling(temperature=1.0, top_p=0.7))) == {0, 1}
    assert set(drawn(200, Sampling(temperature=9.0, top_p=1.0))) == {0, 1, 2, 3}


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    shares = np.bincount(drawn(4000, Sampling(temperature=1.0, top_p=1.0)), minlength=4) / 4000
    assert np.abs(shares - CHANCES).max() < 0.03


def test_arrays_of_llama_cpp_are_sampled_like_tensors() -> None:
    logits = np.log(np.array(CHANCES, np.float32))
    warm = Sampling(temperature=1.0, top_p=0.9)
    found = []
    for given in (logits, torch.from_numpy(logits)):
        sampler = TokenSampler("Do that", torch.Generator().manual_seed(3))
        found.append([sampler.sample(given, warm) for _ in range(50)])
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(temperature: float, bad: float) -> None:
    with pytest.raises(ChatError, match="computes no numbers; got logits that are none. Do that"):
        SAMPLER.sample(torch.tensor([0.0, bad, 1.0]), Sampling(temperature=temperature))
