"""Add vision and speech to a small language model on one GPU, and verify at every step that the
model uses them.

    recipe = phisense.load_recipe("practice", root="demo")
    phisense.encode_features(recipe)
    run = phisense.train(recipe, on_event=print)
    model = phisense.merge(run.folder)
    report = phisense.evaluate(model.folder, data=["demo/data/heldout.jsonl"],
                               images=recipe.image_folders)
    report.real.accuracy.value

Public names are imported lazily, on first use, so that `import phisense` is fast: it imports
neither torch nor numpy.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .openmp import set_passive_waiting

if TYPE_CHECKING:
    from .chat.open_engine import open_engine
    from .chat.session import ChatSession as ChatSession
    from .errors import PhisenseError
    from .model.assembly import Phi3WithProjector
    from .model.folder import load_model
    from .pipeline.check import check
    from .pipeline.evaluate import EvaluationReport, evaluate
    from .pipeline.export import export
    from .pipeline.features import encode_features
    from .pipeline.merge import merge
    from .pipeline.progress import (
        Event,
        Finished,
        HeldOutEval,
        Notice,
        OnEvent,
        Progress,
        Section,
        StepSkipped,
        TrainingStep,
    )
    from .pipeline.results import (
        CheckResult,
        ExportResult,
        FeaturesResult,
        MergeResult,
        TrainResult,
    )
    from .pipeline.train import train
    from .recipe import Recipe, load_recipe
    from .speech.transcriber import Transcriber

    __version__: str

# Block native code from the hub. If the package `kernels` is installed, bitsandbytes downloads
# kernels on import, and transformers does for models that request them. A None entry in sys.modules
# makes the import fail, so both behave as if it were not installed.
sys.modules["kernels"] = None  # type: ignore[assignment]
os.environ["USE_HUB_KERNELS"] = "NO"
# On CPUs with bfloat16 instructions it warns then, and advises to install what is blocked.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

set_passive_waiting()  # here, since it must be before torch is imported

#: Public name -> the module that defines it.
_PUBLIC = {
    "CheckResult": "phisense.pipeline.results.CheckResult",
    "ChatSession": "phisense.chat.session.ChatSession",
    "EvaluationReport": "phisense.pipeline.evaluate.EvaluationReport",
    "Event": "phisense.pipeline.progress.Event",
    "ExportResult": "phisense.pipeline.results.ExportResult",
    "FeaturesResult": "phisense.pipeline.results.FeaturesResult",
    "Finished": "phisense.pipeline.progress.Finished",
    "HeldOutEval": "phisense.pipeline.progress.HeldOutEval",
    "MergeResult": "phisense.pipeline.results.MergeResult",
    "Notice": "phisense.pipeline.progress.Notice",
    "OnEvent": "phisense.pipeline.progress.OnEvent",
    "Phi3WithProjector": "phisense.model.assembly.Phi3WithProjector",
    "PhisenseError": "phisense.errors.PhisenseError",
    "Progress": "phisense.pipeline.progress.Progress",
    "Recipe": "phisense.recipe.Recipe",
    "Section": "phisense.pipeline.progress.Section",
    "StepSkipped": "phisense.pipeline.progress.StepSkipped",
    "TrainResult": "phisense.pipeline.results.TrainResult",
    "TrainingStep": "phisense.pipeline.progress.TrainingStep",
    "Transcriber": "phisense.speech.transcriber.Transcriber",
    "check": "phisense.pipeline.check.check",
    "encode_features": "phisense.pipeline.features.encode_features",
    "evaluate": "phisense.pipeline.evaluate.evaluate",
    "export": "phisense.pipeline.export.export",
    "load_model": "phisense.model.folder.load_model",
    "load_recipe": "phisense.recipe.load_recipe",
    "merge": "phisense.pipeline.merge.merge",
    "open_engine": "phisense.chat.open_engine.open_engine",
    "train": "phisense.pipeline.train.train",
}

__all__ = [
    "ChatSession",
    "CheckResult",
    "EvaluationReport",
    "Event",
    "ExportResult",
    "FeaturesResult",
    "Finished",
    "HeldOutEval",
    "MergeResult",
    "Notice",
    "OnEvent",
    "Phi3WithProjector",
    "PhisenseError",
    "Progress",
    "Recipe",
    "Section",
    "StepSkipped",
    "TrainResult",
    "TrainingStep",
    "Transcriber",
    "__version__",
    "check",
    "encode_features",
    "evaluate",
    "export",
    "load_model",
    "load_recipe",
    "merge",
    "open_engine",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use. Raises AttributeError for any other name."""
    if name == "__version__":
        value: Any = _version()
    elif name in _PUBLIC:
        module, _, original = _PUBLIC[name].rpartition(".")
        value = getattr(import_module(module), original)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("phisense")
    except PackageNotFoundError:  # run from a source tree
        return "0+source"
