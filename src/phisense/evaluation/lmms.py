"""lmms-eval on a model folder, where it is installed: its `llava_hf` adapter opens the folder in plain transformers, in another process.

Its tasks, prompts and scores are its own; what comes back is what it wrote. Nothing of it is imported here, and it is no requirement.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import artefact
from ..errors import PhisenseError, UsageError
from ..model.device import pick_device


def run_lmms_eval(
    model: Path, tasks: str, out: Path, *, device: str = "auto", include: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Runs `tasks` (names, between commas) and returns `{"tasks": {name: {metric: value}}, "versions": ..., "report": its results file}`.

    `include` is a folder with task files of one's own, `limit` the questions of each task. What lmms-eval prints, bars included, goes to
    the standard error. Raises PhisenseError if it is not installed or fails, UsageError for a folder that its adapter does not open.
    """
    artefact.check_is_model(model)
    found = artefact.read_json(model / "config.json").get("model_type")
    if found != "llava":
        raise UsageError(
            f"lmms-eval's llava_hf adapter does not open {model}",
            got=f"model type {found}",
            wanted="llava: a model without projector.pool",
            do="Evaluate it with --data",
        )
    if "," in str(model.resolve()):
        raise UsageError("lmms-eval takes commas for the end of a folder's name", got=str(model), do="Rename the folder")
    if find_spec("lmms_eval") is None:
        raise PhisenseError(
            "lmms-eval is not installed here", do="pip install lmms-eval, in an environment that has phisense, too (docs/others.md)"
        )
    began = _results(out)
    ran = subprocess.run(words(model, tasks, out, str(pick_device(device)), include, limit), stdout=sys.stderr, check=False)  # noqa: S603
    made = sorted(_results(out) - began)
    if ran.returncode != 0 or not made:
        raise PhisenseError(
            "lmms-eval ended without results", got=f"exit code {ran.returncode}", do="See what it said above; lmms-eval --tasks list"
        )
    told = artefact.read_json(made[-1])
    scores = {
        name: {metric.removesuffix(",none"): value for metric, value in one.items() if isinstance(value, (int, float))}
        for name, one in told["results"].items()
    }
    return {"tasks": scores, "versions": told.get("versions", {}), "report": str(made[-1])}


def words(model: Path, tasks: str, out: Path, device: str, include: Path | None, limit: int | None) -> list[str]:
    """The command line. `device_map` must be told, since transformers 5 refuses the empty one that the adapter has for a default."""
    line = [
        *(sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--batch_size", "1", "--log_samples", "--tasks", tasks),
        *("--model_args", f"pretrained={model.resolve()},device={device},device_map={device}", "--output_path", str(out)),
    ]
    line += ["--include_path", str(include)] if include is not None else []
    return line + (["--limit", str(limit)] if limit is not None else [])


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*_results.json"))
