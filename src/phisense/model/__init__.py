"""Model assembly, 4-bit loading, LoRA, and the on-disk model folder."""

from .assembly import Phi3WithProjector
from .folder import load_model, save_model
from .inputs import ModelInputs, StoredFeatures, pad_rows
from .projectors import count_image_tokens

__all__ = [
    "ModelInputs",
    "Phi3WithProjector",
    "StoredFeatures",
    "count_image_tokens",
    "load_model",
    "pad_rows",
    "save_model",
]
