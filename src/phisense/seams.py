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

FAMILY_MODULES = {
    "phi3": "phisense.families.phi3",
    "phi4_mini": "phisense.families.phi4_mini",
    "smollm2": "phisense.families.smollm2",
    "qwen2_5": "phisense.families.qwen2_5",
    "qwen3": "phisense.families.qwen3",
}

ENCODER_MODULES = {
    "clip": "phisense.vision.encoders.clip",
    "siglip": "phisense.vision.encoders.siglip",
    "dinov2": "phisense.vision.encoders.dinov2",
}

PROJECTOR_MODULES = {
    "linear": "phisense.model.projectors.linear",
    "mlp": "phisense.model.projectors.mlp",
    "pixel_shuffle": "phisense.model.projectors.pixel_shuffle",
}

ENGINE_MODULES = {
    "torch": "phisense.chat.engines.torch",
    "llama": "phisense.chat.engines.llama",
    "remote": "phisense.chat.engines.remote",
}

OBJECTIVE_MODULES = {
    "supervised": "phisense.training.objectives.supervised",
}

#: In order of precedence: the first format that recognizes a row has it.
FORMAT_MODULES = {
    "llava": "phisense.conversations.formats.llava",
    "messages": "phisense.conversations.formats.messages",
    "texts": "phisense.conversations.formats.texts",
    "prompt_completion": "phisense.conversations.formats.prompt_completion",
    "question_answer": "phisense.conversations.formats.question_answer",
}

TASK_MODULES = {
    "vqav2": "phisense.evaluation.tasks.vqav2",
    "gqa": "phisense.evaluation.tasks.gqa",
    "textvqa": "phisense.evaluation.tasks.textvqa",
    "textvqa-ocr": "phisense.evaluation.tasks.textvqa_ocr",
    "scienceqa": "phisense.evaluation.tasks.scienceqa",
    "pope": "phisense.evaluation.tasks.pope",
    "mmbench": "phisense.evaluation.tasks.mmbench",
    "mme": "phisense.evaluation.tasks.mme",
    "captions": "phisense.evaluation.tasks.captions",
    "docvqa": "phisense.evaluation.tasks.docvqa",
    "chartqa": "phisense.evaluation.tasks.chartqa",
    "ocrbench": "phisense.evaluation.tasks.ocrbench",
    "mmstar": "phisense.evaluation.tasks.mmstar",
    "ai2d": "phisense.evaluation.tasks.ai2d",
    "realworldqa": "phisense.evaluation.tasks.realworldqa",
    "mmmu": "phisense.evaluation.tasks.mmmu",
    "hallusionbench": "phisense.evaluation.tasks.hallusionbench",
    "amber": "phisense.evaluation.tasks.amber",
    "own": "phisense.evaluation.tasks.own",
}
