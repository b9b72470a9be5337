"""Run lmms-eval, if it is installed, on a model folder: its `llava_hf` adapter opens the folder
with plain transformers, in a subprocess.

Tasks, prompts and scores are lmms-eval's; the result is read from what it writes. It is neither
imported nor a dependency.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import artifacts
from ..errors import PhisenseError, UsageError
from ..model.device import pick_device
from ..opening import check_servable, validate_folder
from ..prompt import chat_template


@dataclass(frozen=True, slots=True)
class LmmsEvalResult:
    """What lmms-eval reported: metrics by task, the versions of its tasks, and its results file."""

    tasks: dict[str, dict[str, float]]
    versions: dict[str, Any]
    report: str

    def to_dict(self) -> dict[str, object]:
        """`{"tasks", "versions", "report"}`."""
        return {"tasks": self.tasks, "versions": self.versions, "report": self.report}


def run_lmms_eval(
    model: Path,
    tasks: str,
    out: Path,
    *,
    device: str = "auto",
    include: Path | None = None,
    limit: int | None = None,
) -> LmmsEvalResult:
    """Run `tasks` (comma-separated names).

    `include` is a folder with custom task files, `limit` the number of questions of each task. The
    output of lmms-eval, progress bars included, goes to standard error. Raises PhisenseError if it
    is not installed or fails, UsageError for a folder that its adapter cannot open.
    """
    artifacts.check_is_model(model)
    found = validate_folder(model).documents["config.json"].get("model_type")
    if found != "llava":
        raise UsageError(
            f"lmms-eval's llava_hf adapter does not open {model}",
            got=f"model type {found}",
            wanted="llava: a model without projector.pool",
            do="Evaluate it with --data",
        )
    check_servable(model, chat_template(validate_folder(model).config))
    if "," in str(model.resolve()):
        raise UsageError(
            "lmms-eval takes commas for the end of a folder's name",
            got=str(model),
            do="Rename the folder",
        )
    if find_spec("lmms_eval") is None:
        raise PhisenseError(
            "lmms-eval is not installed here",
            do="pip install lmms-eval, in an environment that has phisense, too (docs/others.md)",
        )
    began = _results(out)
    line = words(model, tasks, out, str(pick_device(device)), include, limit)
    ran = subprocess.run(line, stdout=sys.stderr, check=False)  # noqa: S603
    made = sorted(_results(out) - began)
    if ran.returncode != 0 or not made:
        raise PhisenseError(
            "lmms-eval ended without results",
            got=f"exit code {ran.returncode}",
            do="See what it said above; lmms-eval --tasks list",
        )
    told = artifacts.read_json(made[-1])
    scores = {
        name: {
            metric.removesuffix(",none"): value
            for metric, value in one.items()
            if isinstance(value, (int, float))
        }
        for name, one in told["results"].items()
    }
    return LmmsEvalResult(scores, told.get("versions", {}), str(made[-1]))


def words(
    model: Path, tasks: str, out: Path, device: str, include: Path | None, limit: int | None
) -> list[str]:
    """The command line. `device_map` must be set, because transformers 5 rejects the adapter's
    empty default.
    """
    line = [
        *(
            sys.executable,
            "-m",
            "lmms_eval",
            "--model",
            "llava_hf",
            "--batch_size",
            "1",
            "--log_samples",
            "--tasks",
            tasks,
        ),
        *(
            "--model_args",
            f"pretrained={model.resolve()},device={device},device_map={device}",
            "--output_path",
            str(out),
        ),
    ]
    line += ["--include_path", str(include)] if include is not None else []
    return line + (["--limit", str(limit)] if limit is not None else [])


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*_results.json"))
