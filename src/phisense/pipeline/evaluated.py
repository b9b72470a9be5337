"""The model that an evaluation asks: a folder, a finished run or a server, and the engine that runs
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import artifacts
from ..errors import ArtifactError, UsageError
from ..recipe import Recipe
from .json_fields import as_object, optional

if TYPE_CHECKING:
    from ..conversations.common_answers import AnswerTable
    from ..evaluation.predictors import Predictor


@dataclass(frozen=True, slots=True)
class RecordedSettings:
    """The evaluation settings of the recipe that made a model; None where not recorded."""

    batch_size: int | None = None
    max_new_tokens: int | None = None
    run: Recipe | None = None  # the whole recipe, where a run is evaluated


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The evaluated model: a folder or a server, and the engine that runs it."""

    folder: Path | None
    kind: str  # "run", or the name of an engine
    server: str | None
    served_model: str | None
    changes: tuple[str, ...]

    @classmethod
    def find(
        cls,
        model: str | Path | None,
        engine: str,
        server: str | None,
        served_model: str | None,
        changes: tuple[str, ...],
    ) -> EvaluatedModel:
        """Choose the engine without loading anything. Raises UsageError for incompatible arguments,
        ArtifactError for a folder without a model.
        """
        from ..chat.open_engine import choose_engine

        folder = None if model is None else Path(model)
        in_torch = server is None and engine in ("auto", "torch")
        if in_torch and folder is not None and _is_run(folder):
            return cls(folder, "run", None, None, changes)
        kind = choose_engine(folder, engine, server)
        return cls(folder, kind, server, served_model, changes)

    @property
    def name(self) -> str:
        """The name of the model in the report and in the report folder's name."""
        named = self.folder.resolve().name if self.folder else self.served_model or "server"
        return named.replace("/", "-") + ("-unmerged" if self.kind == "run" else "")

    def check_changes(self) -> None:
        """Raise UsageError for recipe changes if the model has no recipe to change."""
        if self.changes and self.kind != "run":
            raise UsageError(
                "only a run has a recipe to change",
                got=f"--set {self.changes[0]}",
                wanted="a run folder",
                do="Leave it out",
            )

    def recipe_settings(self) -> RecordedSettings:
        """The settings of the run's recipe, or of the one that the model folder records in
        training.json.
        """
        if self.folder is None:
            return RecordedSettings()
        if self.kind == "run":
            from ..model.unmerged import load_run_recipe

            recipe = load_run_recipe(self.folder, self.changes)
            settings = recipe.evaluate
            return RecordedSettings(settings.batch_size, settings.max_new_tokens, recipe)
        path = self.folder / "training.json"
        if not path.is_file():
            return RecordedSettings()
        source = str(path)
        document = as_object(artifacts.read_json(path), source)
        recorded = optional(document, "recipe", dict, source) or {}
        recorded = optional(recorded, "evaluate", dict, source) or {}
        sizes = (optional(recorded, key, int, source) for key in ("batch_size", "batch"))
        found = RecordedSettings(
            next((size for size in sizes if size is not None), None),
            optional(recorded, "max_new_tokens", int, source),
        )
        for number in (found.batch_size, found.max_new_tokens):
            if number is not None and number < 1:
                raise ArtifactError(f"{source} is wrong", got=str(number), wanted="at least 1")
        return found

    def training_answers(self) -> AnswerTable | None:
        """The commonest answers of the model's training data; None where they are not recorded, as
        of an imported model. Raises ArtifactError for a damaged record.
        """
        from ..conversations.common_answers import FILE, RECORD_KEY, AnswerTable

        if self.folder is None:
            return None
        path = self.folder / (FILE if self.kind == "run" else "training.json")
        if not path.is_file():
            return None
        found: object = artifacts.read_json(path)
        if self.kind != "run":
            found = as_object(found, str(path)).get(RECORD_KEY)
        return None if found is None else AnswerTable.from_dict(found, str(path))

    def open(
        self,
        batch_size: int,
        device: str,
        picture_tokens: int | None,
        quantize: bool,
        recipe: Recipe | None,
    ) -> Predictor:
        """Load the model, a run with its `recipe`, or connect to the server."""
        if self.kind in ("run", "torch"):
            assert self.folder is not None
            return self._in_batches(batch_size, device, picture_tokens, quantize, recipe)
        from ..chat.open_engine import open_engine
        from ..evaluation.predictors import EnginePredictor

        made = open_engine(
            self.folder,
            engine=self.kind,
            device=device,
            picture_tokens=picture_tokens,
            quantize=quantize,
            server=self.server,
            served_model=self.served_model,
        )
        return EnginePredictor(made)

    def _in_batches(
        self,
        batch_size: int,
        device: str,
        picture_tokens: int | None,
        quantize: bool,
        recipe: Recipe | None,
    ) -> Predictor:
        from ..evaluation.predictors import BatchPredictor
        from ..model import load_model

        assert self.folder is not None
        if self.kind == "torch":
            built = load_model(
                self.folder,
                device,
                image_tokens=picture_tokens,
                quantize=quantize,
                step="evaluate",
            )
            return BatchPredictor(built, batch_size)
        from ..model.unmerged import load_run

        if quantize:
            raise UsageError(
                "a run is asked as it was trained",
                got="--quantize",
                do="Leave it out, or merge the run",
            )
        assert recipe is not None
        built = load_run(self.folder, recipe, device, picture_tokens)
        return BatchPredictor(built, batch_size)


def _is_run(folder: Path) -> bool:
    manifest = folder / artifacts.MANIFEST
    told = artifacts.read_json(manifest) if manifest.is_file() else None
    return isinstance(told, dict) and told.get("kind") == "run"
