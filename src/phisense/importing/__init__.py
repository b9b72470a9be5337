"""`import`: convert LLaVA-format folders and adapters of other tools into a model folder, and
verify it.

source.py     reads a source folder, and checks whether it can be imported
llama.py      converts a Phi-3 that was rewritten as a Llama back
adapters.py   applies LoRA weights to the folder that they were trained on
importer.py   the measured import
"""

from .importer import import_folder

__all__ = ["import_folder"]
