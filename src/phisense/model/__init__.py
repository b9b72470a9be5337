"""Assembly, 4-bit loading, LoRA, and the on-disk model folder."""

from .assembly import Phi3WithProjector, StoredFeatures, pad_rows, picture_slots
from .folder import load_model, save_model

__all__ = ["Phi3WithProjector", "StoredFeatures", "load_model", "pad_rows", "picture_slots", "save_model"]
