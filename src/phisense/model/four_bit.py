"""Whether a model folder may be opened in 4 bits: decided by what `merge` measured and wrote down.

`merge` opens what it wrote as `--quantize` does, asks it the held-out questions and writes the
figures into merge_report.json as `four_bit`. Folders of earlier versions have `back_to_nf4`: the
merged weights quantized again, which is how such a folder opens. Where nothing was measured, as
after an import, the log says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

from .. import artifacts
from ..errors import ArtifactError, PhisenseError
from ..pipeline.json_fields import JsonObject, as_object
from ..pipeline.results import MergeMeasurement, MergeResult
from .adapter_beside import BESIDE_FILE, has_beside

_logger = logging.getLogger(__name__)

#: How much the loss per token may grow, in nats: perplexity by a tenth.
MAX_DELTA_LOSS = 0.1
#: How much of the accuracy on the held-out questions may be lost.
MAX_LOST_ACCURACY = 0.02
_ROUNDING = 1e-9  # 0.80 less 0.78 is more than 0.02 in floating point
_INSTEAD = (
    "open it without --quantize, or run phisense export --quant q8_0 and talk to its files, which"
    " hold the weights in 8 bits"
)
_AGAIN = "Run phisense merge RUN again: the new folder keeps the adapter beside the 4-bit base"


def check_four_bit(folder: Path) -> None:
    """Raises PhisenseError if opening the folder in 4 bits would lose what was trained, by its
    merge report; logs a warning if that was never measured.
    """
    source = folder / MergeResult.FILE
    report = as_object(artifacts.read_json(source), str(source)) if source.is_file() else {}
    if report.get("four_bit") is not None:
        _check_beside(folder, report, source)
        _check_measured(folder, report, "four_bit", source)
    elif report.get("back_to_nf4") is not None:
        _check_measured(folder, report, "back_to_nf4", source)
    else:
        _logger.warning(
            "%s: nobody measured what 4 bits cost this model; phisense evaluate does, with"
            " --quantize and without",
            folder.name,
        )


def _check_beside(folder: Path, report: JsonObject, source: Path) -> None:
    """Raises ArtifactError unless the folder holds the adapter that was measured."""
    if report.get("back_to_nf4") is not None and not has_beside(folder):
        raise ArtifactError(
            f"{folder} lacks {BESIDE_FILE}",
            got=f"no such file, and in {source.name} 4 bits measured with it",
            do="Copy the whole folder, or run phisense merge RUN again",
        )


def _check_measured(folder: Path, report: JsonObject, name: str, source: Path) -> None:
    found, merged = (
        MergeMeasurement.from_dict(report.get(key), f"{source}: {key}") for key in (name, "merged")
    )
    lost = (
        0.0
        if found.accuracy is None or merged.accuracy is None
        else merged.accuracy.value - found.accuracy.value
    )
    # a figure that is NaN is within no limit
    if found.delta_loss <= MAX_DELTA_LOSS and lost <= MAX_LOST_ACCURACY + _ROUNDING:
        return
    raise PhisenseError(
        f"{folder} would lose in 4 bits what it was trained to do",
        got=f"loss {found.delta_loss:+.3f}"
        + ("" if found.accuracy is None else f", accuracy {0 - lost:+.3f}"),
        wanted=f"at most +{MAX_DELTA_LOSS} and -{MAX_LOST_ACCURACY}, as merge measured it",
        do=(
            f"{_INSTEAD[0].upper()}{_INSTEAD[1:]}"
            if name == "four_bit"
            else f"{_AGAIN}. Or {_INSTEAD}"
        ),
    )
