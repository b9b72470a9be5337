"""Training stages on the HF Trainer, packed batches, verified checkpoints."""

from .stages import Training

__all__ = ["Training"]
