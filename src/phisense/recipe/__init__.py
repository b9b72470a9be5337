"""A recipe: the whole configuration as one typed YAML file. Unknown keys, wrong types and wrong
values are rejected by name.

Parts (`language.part`, `vision.part`, `speech.part`) are local folders in hub layout, relative to
the recipe file if they begin with a dot, or ids on the Hugging Face hub. Data and outputs are
relative to `root`, and `root` to the current folder.

fields.py     the base class of sections, types of values
sections.py   every section but `train`
stages.py     `train`: stages, LoRA
recipe.py     the whole, and the paths that follow from it
loading.py    reading files and `--set`
renamed.py    renamed keys; records of earlier runs
explain.py    validation errors as sentences
lookup.py     which section a location belongs to
"""

from .fields import MAX_NUMBER, OneOf, Pattern
from .loading import SHIPPED, load_recipe, load_recorded_recipe, parse_recipe, shipped_recipes
from .recipe import AFTER_TRAINING, Recipe
from .renamed import with_current_keys
from .sections import (
    Data,
    DataFile,
    DataFiles,
    DataSet,
    Evaluate,
    Features,
    Language,
    Merge,
    Paths,
    Projector,
    Speech,
    Vision,
)
from .stages import CHECKPOINT_KEYS, FurtherStage, Integration, Lora, Stage, Train, TrainEval

__all__ = [
    "AFTER_TRAINING",
    "CHECKPOINT_KEYS",
    "MAX_NUMBER",
    "SHIPPED",
    "Data",
    "DataFile",
    "DataFiles",
    "DataSet",
    "Evaluate",
    "Features",
    "FurtherStage",
    "Integration",
    "Language",
    "Lora",
    "Merge",
    "OneOf",
    "Paths",
    "Pattern",
    "Projector",
    "Recipe",
    "Speech",
    "Stage",
    "Train",
    "TrainEval",
    "Vision",
    "load_recipe",
    "load_recorded_recipe",
    "parse_recipe",
    "shipped_recipes",
    "with_current_keys",
]
