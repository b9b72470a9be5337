"""Train the stages of a recipe, and test whether the model uses its images."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Recipe
from .progress import Notice, OnEvent, ignore
from .results import TrainResult

ONE_PROCESS = (
    "train.shard has no effect: there is one process, which holds the whole model; start several by"
    " torchrun"
)


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
    discard_unfinished: bool = False,
    device: str = "auto",
    on_event: OnEvent = ignore,
) -> TrainResult:
    """Train the stages of `recipe` into `recipe.run`, and return the content of `train.json`.

    resume               resume from the newest complete checkpoint; of a finished run, return it
    overwrite            replace a run of this name; a finished one stays until the new one
                         is complete
    accept_changes       resume even if the recipe, data or features changed
    discard_unfinished   remove the run folder if training does not finish, as a search does

    Events are TrainingStep, HeldOutEval, StepSkipped and Notice. Under `torchrun` or `accelerate
    launch` the processes share each batch, and rank 0 reports.

    Raises TrainingError if the gradient or a loss is wrong or another process trains in the folder,
    and TerminatedError, with a checkpoint written, on SIGTERM. Errors of the preflight checks are
    raised before anything is written.
    """
    from .. import artifacts, safe_replace
    from ..evaluation.answer_metrics import is_final_answer_correct
    from ..model.arithmetic import choose_arithmetic
    from ..training import Training

    arithmetic = choose_arithmetic("train", device, compute_dtype=recipe.compute_dtype)
    training = Training(
        recipe,
        on_event,
        resume=resume,
        overwrite=overwrite,
        accept_changes=accept_changes,
        device=device,
        is_correct=is_final_answer_correct,
    )
    if training.processes.is_main:
        on_event(
            Notice(
                f"on {arithmetic.device.type}: computes in {arithmetic.format}, since"
                f" {arithmetic.reason}; attention {arithmetic.attention}"
            )
        )
        if recipe.train.shard and training.processes.world_size == 1:
            on_event(Notice(ONE_PROCESS))
    try:
        result = training()
    finally:
        unfinished = training.began and not (recipe.run / artifacts.MANIFEST).is_file()
        if discard_unfinished and unfinished and training.processes.is_main:
            safe_replace.remove(recipe.run, kind="run")
    if training.processes.is_main and not training.began:
        on_event(Notice(f"{recipe.run} was finished before: nothing was trained"))
    return replace(result, folder=recipe.run)
