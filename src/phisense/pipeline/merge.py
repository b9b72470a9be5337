"""Merge a trained run into one native model folder, and measure the effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .progress import OnEvent, ignore
from .results import MergeResult


def merge(
    run: str | Path,
    *,
    changes: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    on_event: OnEvent = ignore,
) -> MergeResult:
    """Merge the adapter of the run folder `run` into its base, and measure the result.

    changes   `key=value` changes of the run's recipe: where its parts are now, how it is merged
    out       the model folder to write; `models/NAME` beside `runs` if None

    Raises ArtifactError if `run` is not a finished run, PartError if a part differs from the one
    used in training. Raises MergeError, with no model written, if the merged model loses more than
    the recipe's gate allows; its report is then in `run`, and `MergeResult.load(run)` reads it.
    """
    from .. import artifacts
    from ..evaluation.answer_metrics import is_final_answer_correct

    run = Path(run)
    artifacts.read_manifest(run, kind="run", verify=False)
    from ..merging import merge as merge_run

    return merge_run(
        run,
        changes=tuple(changes),
        out=None if out is None else Path(out),
        overwrite=overwrite,
        device=device,
        is_correct=is_final_answer_correct,
        on_event=on_event,
    )
