"""Where something new is registered: for each seam, the names and the modules that hold them.

    seam               protocol                         object in the module
    language family    model/families/base.py           FAMILY
    encoder            vision/encoders/base.py          ENCODER
    projector          model/projectors/base.py         PROJECTOR
    engine             chat/engines.py                  ENGINE
    objective          training/objectives/base.py      OBJECTIVE
    data format        conversations/formats/base.py    FORMAT
    task               evaluation/task.py               TASK

The tables are names alone, so that recipes and the command line know them without importing torch.
The registry of each room (`registry.py`) turns a name into its object.
"""

from __future__ import annotations
