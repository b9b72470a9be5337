"""What the steps of the pipeline return: frozen records whose JSON is stored on disk.

    FeaturesResult   the content of the store          (`phisense features --json`)
    TrainResult      runs/NAME/train.json
    MergeResult      models/NAME/merge_report.json
    ExportResult     MODEL-QUANT/export.json
    CheckResult      the defects of a data set         (`phisense check --json`)
    ConvertResult    a converted data set              (`phisense convert --json`)
    CompareResult    variants of a recipe, evaluated   (`phisense compare --json`)
    TuneResult       a hyperparameter search           (`phisense tune --json`)

`load(folder)` reads the file of a finished step, `to_dict()` returns its JSON. Keys of a later
version are kept under `extra`. The report of an evaluation is in `evaluation.results`.
"""

from .base import FolderResult, SavedResult
from .data import CheckResult, ConvertResult, DataFinding
from .features import FeaturesPlan, FeaturesResult, StoreFormatPlan
from .models import (
    ExportResult,
    FileAgreement,
    JudgedFigure,
    MergeGate,
    MergeMeasurement,
    MergeResult,
    WrittenWeights,
)
from .searches import CompareResult, TrialResult, TuneResult, VariantResult
from .training import (
    RUN_KIND,
    GradientCheckResult,
    GradientComparison,
    StageData,
    StageResult,
    TrainingVerdict,
    TrainResult,
)

__all__ = [
    "RUN_KIND",
    "CheckResult",
    "CompareResult",
    "ConvertResult",
    "DataFinding",
    "ExportResult",
    "FeaturesPlan",
    "FeaturesResult",
    "FileAgreement",
    "FolderResult",
    "GradientCheckResult",
    "GradientComparison",
    "JudgedFigure",
    "MergeGate",
    "MergeMeasurement",
    "MergeResult",
    "SavedResult",
    "StageData",
    "StageResult",
    "StoreFormatPlan",
    "TrainResult",
    "TrainingVerdict",
    "TrialResult",
    "TuneResult",
    "VariantResult",
    "WrittenWeights",
]
