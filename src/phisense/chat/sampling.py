"""Sampling of the next token from the logits, the same for every engine that computes them here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ChatError
from .engine import Sampling


@dataclass(frozen=True, slots=True)
class TokenSampler:
    """Chooses next tokens.

    advice      what to do about logits that are NaN or infinite
    generator   source of randomness; None is PyTorch's default generator
    """

    advice: str
    generator: torch.Generator | None = None

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor | NDArray[np.float32], sampling: Sampling) -> int:
        """The next token for logits `(V,)`: their argmax at temperature 0, else drawn by nucleus
        sampling from the likeliest tokens whose probabilities sum to `top_p`.

        Raises ChatError for logits that are NaN or infinite.
        """
        logits = torch.as_tensor(logits)
        if not logits.isfinite().all():
            raise ChatError(
                "the model computes no numbers", got="logits that are none", do=self.advice
            )
        if sampling.temperature <= 0:
            return int(logits.argmax())
        chances, order = (logits / sampling.temperature).softmax(0).sort(descending=True)
        chances[chances.cumsum(0) - chances >= sampling.top_p] = 0
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])
