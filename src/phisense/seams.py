"""Where something new is registered: for each seam, the names and the modules that hold them.

    seam               protocol                         object in the module
    language family    families/base.py                 FAMILY
    encoder            vision/encoders/base.py          ENCODER
    projector          model/projectors/base.py         PROJECTOR
    engine             chat/engines/base.py             ENGINE
    objective          training/objectives/base.py      OBJECTIVE
    data format        conversations/formats/base.py    FORMAT
    task               evaluation/task.py               TASK

The tables are names alone, so that recipes and the command line know them without importing torch.
The registry of each room (`registry.py`) turns a name into its object.
"""

from __future__ import annotations

LANGUAGE_FAMILIES = {
    "phi3": "phisense.families.phi3",
    "phi4_mini": "phisense.families.phi4_mini",
}

ENCODERS = {
    "clip": "phisense.vision.encoders.clip",
    "siglip": "phisense.vision.encoders.siglip",
    "dinov2": "phisense.vision.encoders.dinov2",
}

PROJECTORS = {
    "linear": "phisense.model.projectors.linear",
    "mlp": "phisense.model.projectors.mlp",
    "pixel_shuffle": "phisense.model.projectors.pixel_shuffle",
}

ENGINES = {
    "torch": "phisense.chat.engines.torch",
    "llama": "phisense.chat.engines.llama",
    "remote": "phisense.chat.engines.remote",
}

OBJECTIVES = {
    "supervised": "phisense.training.objectives.supervised",
}

DATA_FORMATS: dict[str, str] = {}

TASKS: dict[str, str] = {}
