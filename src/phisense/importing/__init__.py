"""`import`: what others' tools wrote becomes a model folder, checked weight for weight and answer for answer.

source.py     what lies in a folder, and what of it can be taken
llama.py      a Phi-3 that was rewritten as a Llama, back again
adapters.py   LoRA weights onto the folder that they were trained on
run.py        the measured import
"""

from .run import import_folder

__all__ = ["import_folder"]
