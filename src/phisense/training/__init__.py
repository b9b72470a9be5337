"""Batches, the two stages on HF Trainer, verified checkpoints."""

from .run import Training

__all__ = ["Training"]
