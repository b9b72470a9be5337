"""A Space and its model, written as a dry run or uploaded to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import artifacts, safe_replace
from ..errors import PhisenseError, UsageError
from ..pipeline.records import Record
from .space import SpacePlan, write_repositories, write_space_repository

SPACE_KIND = "space"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment(Record):
    """A deployed Space: its URL, or the folder of a dry run; and the bytes of each file of the two
    repositories, `model/...` and `space/...`.
    """

    space: str
    hardware: str
    dry_run: str | None = None
    url: str | None = None
    files: Mapping[str, int]


def check_target(
    model: Path, gguf: Path | None, dry_run: Path | None, *, overwrite: bool = False
) -> None:
    """Raise UsageError unless the hub can be reached with a token, or the folder of a dry run may
    be written.
    """
    if dry_run is None:
        check_hub_token()
    elif dry_run.resolve() in (model.resolve(), *([gguf.resolve()] if gguf else [])):
        raise UsageError(
            "the dry run would replace the model",
            got=str(dry_run),
            do="Name another folder with --dry-run",
        )
    else:
        instead = "Name another folder with --dry-run, or replace it with --overwrite"
        safe_replace.check_can_write(dry_run, kind=SPACE_KIND, overwrite=overwrite, hint=instead)


def write_dry_run(plan: SpacePlan, out: Path, *, overwrite: bool = False) -> Deployment:
    """Write both repositories to the folder `out`; nothing is uploaded."""
    with artifacts.staged_artifact(
        out, kind=SPACE_KIND, about={"space": plan.space}, overwrite=overwrite
    ) as aside:
        write_repositories(plan, aside)
        files = _file_sizes(aside)
    return Deployment(space=plan.space, hardware=plan.hardware, dry_run=str(out), files=files)


def deploy_space(plan: SpacePlan, on_progress: Callable[[str], None]) -> Deployment:
    """Upload both repositories, which are written beside the model for that. Raises PhisenseError
    if the hub rejects an upload.
    """
    model = plan.model.resolve()
    safe_replace.remove_leftovers(model.parent)
    with safe_replace.staging_folder(model, kind=SPACE_KIND) as aside:
        write_repositories(plan, aside)
        files = _file_sizes(aside)
        url = upload_repositories(plan, aside, on_progress)
    return Deployment(space=plan.space, hardware=plan.hardware, url=url, files=files)


def _file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that is uploaded, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent != folder
    }


def check_hub_token() -> None:
    """Raise UsageError, explaining how to get a token, unless huggingface_hub finds one.

    The token itself is not used.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UsageError(
            "there is no Hugging Face token here",
            do=(
                "Make one that may write, in your settings on huggingface.co under Access Tokens,"
                " and run hf auth login (or set HF_TOKEN); --dry-run DIR needs none"
            ),
        )


def upload_repositories(plan: SpacePlan, folder: Path, on_progress: Callable[[str], None]) -> str:
    """Upload `folder/model` and `folder/space` to the hub; returns the Space's URL.

    The model is first, since the Space pins its revision. Raises PhisenseError if the hub rejects
    an upload, saying what was uploaded before.
    """
    from huggingface_hub import HfApi

    api, done = HfApi(), "nothing was uploaded"
    try:
        on_progress(f"model {plan.space}")
        api.create_repo(plan.space, repo_type="model", private=plan.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=plan.space,
            repo_type="model",
            folder_path=folder / "model",
            commit_message="phisense deploy",
        )
        done = f"the model {plan.space} is there, the Space is not finished"
        safe_replace.discard(folder / "space")
        write_space_repository(plan, folder / "space", revision=commit.oid)
        on_progress(f"space {plan.space}")
        hardware: dict[str, Any] = (
            {"space_hardware": plan.hardware} if plan.hardware_requested else {}
        )
        api.create_repo(
            plan.space,
            repo_type="space",
            space_sdk="gradio",
            private=plan.private,
            exist_ok=True,
            **hardware,
        )
        api.upload_folder(
            repo_id=plan.space,
            repo_type="space",
            folder_path=folder / "space",
            commit_message="phisense deploy",
            # Remove files of an earlier deployment; others stay.
            delete_patterns=["phisense/*", "speech/*"],
        )
    except Exception as error:  # the hub client raises errors of three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PhisenseError(
            f"the hub refused; {done}",
            got=reason.rstrip("."),
            do="Mend that and deploy again; it goes on where it must",
        ) from error
    return f"https://huggingface.co/spaces/{plan.space}"
