"""`import`: convert LLaVA-format folders and adapters of other tools into a model folder, a GGUF
file into a language part, and verify it.

source.py     reads a source folder, and checks whether it can be imported
llama.py      converts a Phi-3 that was rewritten as a Llama back
adapters.py   applies LoRA weights to the folder that they were trained on; adapter_names.py and
              adapter_checks.py match them with its modules
importer.py   the measured import
rebuild.py    the weights of a source, in a native model
probes.py     questions about generated images, and the logits of a model for them
report.py     what was measured: import_report.json, and its limits
gguf_part.py  a GGUF file, held to llama.cpp; gguf_model.py has its weights, gguf_tokenizer.py its
              tokenizer
"""

from .gguf_part import GGUFImportReport, import_gguf
from .importer import import_folder
from .report import ImportReport

__all__ = ["GGUFImportReport", "ImportReport", "import_folder", "import_gguf"]
