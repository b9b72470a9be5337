"""Assembly, 4-bit loading, LoRA, and the on-disk model folder."""

from .assembly import Phi3WithProjector, StoredFeatures, pad_rows
from .folder import load_model, save_model
from .projectors import picture_slots

__all__ = ["Phi3WithProjector", "StoredFeatures", "load_model", "pad_rows", "picture_slots", "save_model"]
