"""The training stages of a recipe: parts -> model -> freeze -> data -> align -> instruct, and
further stages -> run folder.

runs/<name>/recipe.yaml     the resolved recipe
            parts.json      a digest of each part's content: see model/provenance.py
            metrics.jsonl   one line per log step
            loss.png        the loss curves
            train.json      trainable parameters, projector change, whether the model uses its
                            images, tokens and seconds
            adapter/        LoRA and projector, in PEFT's format; after full fine-tuning weights/
            stages/         each finished stage's weights; its checkpoints while it runs
            manifest.json   written last: a run without it never finished
"""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed

from .. import artifacts
from ..conversations import ImageFinder, read_conversations
from ..distributed import ProcessGroup, current_process_group
from ..errors import TrainingError
from ..model import Phi3WithProjector, trainable
from ..model.arithmetic import Arithmetic, choose_arithmetic
from ..model.calibrate import calibrate
from ..model.provenance import (
    PartDigests,
    check_parts_unchanged,
    digest_parts,
    pin_revisions,
    write_digests,
)
from ..model.quantized import check_not_repacked, codes_digest, plain_digest, scales_digest
from ..pipeline.progress import OnEvent, ignore
from ..pipeline.results import TrainingVerdict
from ..recipe import Recipe, Stage, load_recorded_recipe
from ..vision.encoders import Encoder, encoder_facts
from ..vision.store import FeatureStore
from . import checkpoints, run_folder
from .data import Collator, Samples
from .eval_callback import EvalCallback, IsCorrect, eval_questions
from .gradient_check import GradientCheck
from .loss_guard import LossGuard
from .metrics_log import MetricsLog
from .plot import plot_losses
from .preemption import PreemptionCallback
from .preflight import PlannedStage, check_pictures, preflight
from .trainer import Reporter, StageTrainer, arguments

CALIBRATION_IMAGES = 64
#: Recipe keys that a resume does not compare: the location of a part says nothing about its content
#: (`parts` does), nor does the requested dtype about the one used (`computes_in` does).
_NOT_COMPARED: Any = {
    **dict.fromkeys(("root", "compute_dtype", "start", "speech"), True),
    **{key: {"part"} for key in ("language", "vision")},
}


@dataclass(frozen=True)
class _StagePlan:
    """A stage before anything is written.

    In a resumed run `finished` is the manifest of a stage that had finished, `checkpoint` the
    newest checkpoint of one that had not.
    """

    stage: Stage
    ahead: PlannedStage
    args: TrainingArguments
    about: dict[str, Any]
    finished: dict[str, Any] | None = None
    checkpoint: Path | None = None


@dataclass
class Training:
    """One run of `train`.

    `on_event` receives a TrainingStep for every logged row, a StepSkipped for every skipped step, a
    HeldOutEval after every evaluation on held-out questions, scored by `is_correct`, and a Notice
    about questions that cannot be evaluated.
    """

    recipe: Recipe
    on_event: OnEvent = ignore
    resume: bool = False
    overwrite: bool = False
    accept_changes: bool = False
    is_correct: IsCorrect | None = None
    device: str = "auto"
    processes: ProcessGroup = field(default_factory=current_process_group)
    facts: dict[str, Any] = field(default_factory=dict)
    arithmetic: Arithmetic = field(init=False)
    _parts: PartDigests = field(init=False, default_factory=dict)
    began: bool = field(init=False, default=False)  # whether this training owns the run's folder
    _scales: str | None = field(init=False, default=None)

    def __call__(self) -> dict[str, Any]:
        """Train, write the run folder, and return the content of `train.json`.

        Raises TrainingError if another process trains in the folder, PartError if a part changed
        since a resumed run began, TerminatedError on SIGTERM, after writing a checkpoint.
        """
        if self.processes.is_main:
            run_folder.check_run_folder(
                self.recipe.run, resume=self.resume, overwrite=self.overwrite
            )
        started = time.monotonic()
        self._find_parts(self.recipe.run)
        recipe = self.recipe
        self.arithmetic = choose_arithmetic(
            "train", self.device, compute_dtype=recipe.compute_dtype
        )
        self.facts["arithmetic"] = self.arithmetic.to_dict()
        ahead = preflight(recipe, processes=self.processes.world_size)
        store = self._open_store()
        # a run whose stages have all finished evaluates no questions
        asks = self.is_correct is not None and not all(map(self._is_made, ahead))
        check_pictures(recipe, ahead, store, eval_questions(recipe) if asks else ())
        set_seed(recipe.seed)
        built = self._build(store)
        plans = {name: self._plan(name, ahead.pop(name), store) for name in list(ahead)}
        if (
            self.resume
            and run_folder.is_finished(recipe.run)
            and all(plan.finished is not None for plan in plans.values())
        ):
            return dict(artifacts.read_json(recipe.run / "train.json"))
        seen = run_folder.manifest_times(recipe.run)
        self.processes.barrier()  # until all processes have read the folder's state
        with run_folder.lock_run(recipe.run) if self.processes.is_main else nullcontext():
            if self.processes.is_main:
                run_folder.check_run_folder(
                    recipe.run, resume=self.resume, overwrite=self.overwrite, mine=True
                )
                if self.resume and run_folder.manifest_times(recipe.run) != seen:
                    raise TrainingError(
                        f"another process has trained in {recipe.run} meanwhile",
                        do="Resume once more",
                    )
                run_folder.begin_run(recipe, resume=self.resume)
                self.began = True
                write_digests(recipe.run, self._parts)
            self.processes.barrier()
            return self._run(recipe.run, built, store, plans, started)

    def _run(
        self,
        folder: Path,
        built: Phi3WithProjector,
        store: FeatureStore,
        plans: dict[str, _StagePlan],
        started: float,
    ) -> dict[str, Any]:
        recipe = self.recipe
        trainable.freeze_all_but_projector(built)
        self._calibrate(built, store)
        before = trainable.snapshot(built.projector)
        self.facts["stages"] = {}
        if recipe.train.align is not None:
            self._stage("align", plans.pop("align"), built, built.model, store)
            self.facts["stages"]["align"]["projector_change"] = trainable.relative_change(
                before, built.projector
            )
        model = trainable.unfreeze_language(built, recipe)
        self.facts |= trainable.count_trainable(model, recipe).to_dict()
        for name in list(plans):
            self._stage(name, plans.pop(name), built, model, store)
        self.facts["looks"] = self.facts["stages"][list(recipe.train.stages)[-1]].pop(
            "looks", TrainingVerdict().to_dict()
        )
        self.facts["projector_change"] = trainable.relative_change(
            before, trainable.get_projector(model)
        )
        if not self.facts["projector_change"] > 0:
            raise TrainingError(
                "training did not move the projector",
                got="a change of 0",
                wanted="more",
                do=(
                    "In a warm-up the first step's rate is 0: take more steps, or"
                    " warmup_ratio: 0. Else it is a fault of phisense"
                ),
            )
        self.facts["seconds"] = time.monotonic() - started
        if self.processes.is_main:
            self._finish(folder, model)
        self.processes.barrier()
        return self.facts

    def _find_parts(self, folder: Path) -> None:
        """Pin the recipe's Hub ids, and check the parts before anything is loaded or written."""
        before = folder / "recipe.yaml"
        self.recipe = pin_revisions(
            self.recipe,
            earlier=load_recorded_recipe(before) if self.resume and before.is_file() else None,
        )
        if self.resume and not self.accept_changes:
            again = (
                "Put it back as it was, begin anew with --overwrite, or go on with the other by"
                " --accept-changes"
            )
            self._parts = check_parts_unchanged(folder, self.recipe, do=again)
        else:
            self._parts = digest_parts(self.recipe)

    def _build(self, store: FeatureStore) -> Phi3WithProjector:
        """The model without a vision tower, or with the store's live encoder if the tower is
        trained.
        """
        recipe = self.recipe
        how = self.arithmetic
        # trained weights are float32; autocast computes in the compute dtype
        dtype = torch.float32 if recipe.train.lora is None else how.dtype
        built = Phi3WithProjector.from_recipe(
            recipe,
            quantize=recipe.train.quantize,
            stored_features=True,
            device=str(how.device),
            dtype=dtype,
        )
        built.model.set_attn_implementation({"text_config": how.attention})
        check_not_repacked(built.model, "training")
        self.facts["four_bit_codes"] = codes_digest(built.model)
        self.facts["plain_weights"] = (
            None if recipe.train.lora is None else plain_digest(built.model)
        )  # without LoRA they are trained, so they change
        self._scales = scales_digest(built.model)
        if recipe.tunes_vision:
            assert store.live is not None
            built.model.model.vision_tower = store.live.model
        return built

    def _open_store(self) -> FeatureStore:
        vision, dtype = self.recipe.vision, self.recipe.features.dtype
        live = None
        if dtype == "pixels":
            how = self.arithmetic
            live = Encoder(
                vision.part, vision.encoder, vision.layer, device=str(how.device), dtype=how.dtype
            )
        facts = encoder_facts(vision.part, vision.encoder, vision.layer)
        return FeatureStore(
            self.recipe.store,
            facts=facts,
            dtype=dtype,
            live=live,
            images=ImageFinder(self.recipe.image_folders),
        )

    def _calibrate(self, built: Phi3WithProjector, store: FeatureStore) -> None:
        """Calibrate the fresh projector on the features of some training images, without those of
        the evaluation questions.

        A projector loaded from `start` is left as it is.
        """
        if self.recipe.start is not None:
            return
        held_out = {question.image for question in eval_questions(self.recipe)}
        trained_on = {
            name
            for one in self.recipe.data_sets
            for row in read_conversations(self.recipe.path(one.path))
            for name in row.images
        }
        own = trained_on - held_out  # a store may hold images of other recipes, too
        names = [name for name in store.names if name in own] or store.names
        some = random.Random(self.recipe.seed).sample(names, min(len(names), CALIBRATION_IMAGES))
        features = torch.stack([store.features(name).float() for name in some]).to(built.device)
        self.facts["calibration"] = calibrate(
            built.projector, features, built.model.get_input_embeddings().weight
        )

    def _plan(self, name: str, ahead: PlannedStage, store: FeatureStore) -> _StagePlan:
        """Plan a stage, with its finished weights or newest checkpoint if the run is resumed.
        Writes nothing.

        Raises ArtifactError if these were made from another recipe, other data or other parts.
        """
        folder = self.recipe.run / "stages" / name
        stage, samples = self.recipe.train.stages[name], ahead.samples
        args = self._arguments(stage, ahead, folder)
        about = {
            "recipe": self.recipe.model_dump(mode="json", exclude=_NOT_COMPARED),
            "stage": name,
            "data": {"conversations": samples.conversations, "sha256": samples.digest},
            "features": {"encoder": store.encoder, "sha256": store.digest(samples.pictures)},
            "computes_in": self.arithmetic.format,
            "parts": {name: told.sha256 for name, told in self._parts.items() if name != "speech"},
            "base": {name: self.facts[name] for name in ("four_bit_codes", "plain_weights")},
        }
        if self._is_made(name):
            made = artifacts.read_manifest(folder, kind="stage")
            if not self.accept_changes:
                checkpoints.check_unchanged(folder, made["about"], about)
            return _StagePlan(stage, ahead, args, about, finished=made)
        last = (
            checkpoints.latest_verified(folder, about=None if self.accept_changes else about)
            if self.resume
            else None
        )
        return _StagePlan(stage, ahead, args, about, checkpoint=last)

    def _is_made(self, stage: str) -> bool:
        """Whether the run is resumed and had finished `stage`."""
        return self.resume and (self.recipe.run / "stages" / stage / artifacts.MANIFEST).is_file()

    def _arguments(self, stage: Stage, ahead: PlannedStage, folder: Path) -> TrainingArguments:
        recipe = self.recipe
        steps = (
            stage.max_steps
            if stage.max_steps > 0
            else round(stage.epochs * ahead.samples.conversations / stage.batch_size)
        )
        return arguments(
            stage,
            folder,
            seed=recipe.seed,
            rows=ahead.rows,
            passes=ahead.passes,
            log_every=recipe.train.log_every,
            save_every=max(20, min(500, steps // 4)),
            bf16=self.arithmetic.dtype is torch.bfloat16,
            cpu=self.arithmetic.device.type == "cpu",
            checkpointing=recipe.train.gradient_checkpointing,
            report_to=recipe.train.report_to,
            skip_bad_steps=recipe.train.bad_step == "skip",
        )

    def _stage(
        self, name: str, plan: _StagePlan, built: Phi3WithProjector, model: Any, store: FeatureStore
    ) -> None:
        """Train one stage, or load its weights if a resumed run had finished it."""
        folder = self.recipe.run / "stages" / name
        if plan.finished is not None:
            self.facts["stages"][name] = plan.finished["facts"]
            checkpoints.load_stage(model, folder)
            return
        facts = self._train(name, plan, folder, built, model, store)
        self._check_codes(name, built)
        self.facts["stages"][name] = facts
        if self.processes.is_main:
            checkpoints.finish_stage(model, folder, about={"facts": facts, "about": plan.about})

    def _train(
        self,
        name: str,
        plan: _StagePlan,
        folder: Path,
        built: Phi3WithProjector,
        model: Any,
        store: FeatureStore,
    ) -> dict[str, Any]:
        stage, samples, checkpoint = plan.stage, plan.ahead.samples, plan.checkpoint
        recipe = self.recipe
        collate = Collator(
            store.pixels if recipe.tunes_vision else store.batch,
            built.prompt.end_of_text_id,
            attention=self.arithmetic.attention,
            pad_to_multiple_of=self.arithmetic.token_multiple,
        )
        resumed_step = checkpoints.step_of(checkpoint) if checkpoint else 0
        log = MetricsLog(recipe.run / "metrics.jsonl", name, collate, self.on_event, self.processes)
        if self.processes.is_main:
            log.truncate_after(resumed_step)
        preemption = PreemptionCallback(self.processes)
        evaluation = EvalCallback(built, store, recipe, self.is_correct, log, stage=name)
        loss_guard = LossGuard(recipe.train, self.processes, log)
        trainer = StageTrainer(
            model=model,
            args=plan.args,
            train_dataset=samples,
            data_collator=collate,
            callbacks=[Reporter(log), evaluation, preemption],
            stage=stage,
            about=plan.about,
            guard=loss_guard,
            processes=self.processes,
        )
        check = GradientCheck(
            samples,
            collate,
            trainer.loss_of,
            self.arithmetic.dtype,
            self.processes,
            lambda: evaluation.facts["held_out"] is not None,
            recipe.seed,
        )
        trainer.add_callback(check)  # after EvalCallback, whose result it reads
        trainer.remove_callback(PrinterCallback)  # rows are reported by `MetricsLog`
        log({"step": 0, "steps": count_trainer_steps(trainer, samples)})
        started = time.monotonic()
        with preemption:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        evaluation.finish(model, result.global_step)
        # no step was left, so Trainer did not restore the random state
        if checkpoint and resumed_step == result.global_step:
            trainer._load_rng_state(str(checkpoint))
        seconds = time.monotonic() - started - sum(one["seconds"] for one in check.results)
        tokens = int(self.processes.all_reduce_sum(collate.tokens))
        return {
            "samples": samples.conversations,
            "data": samples.sets,
            "rows": len(samples),
            "shortened": samples.num_shortened,
            "steps": result.global_step,
            "loss": result.training_loss,
            "last_loss": log.last_loss,
            **evaluation.facts,
            "gradient_check": check.results,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }

    def _check_codes(self, stage: str, built: Phi3WithProjector) -> None:
        """Raises TrainingError if the frozen weights of the language part changed since the run
        began.
        """
        plain = None if self.facts["plain_weights"] is None else plain_digest(built.model)
        found = codes_digest(built.model), scales_digest(built.model), plain
        wanted = self.facts["four_bit_codes"], self._scales, self.facts["plain_weights"]
        if found != wanted:
            raise TrainingError(
                f"the frozen weights changed in stage {stage}",
                got=", ".join(
                    f"{name} {str(one)[:12]}"
                    for name, one in zip(("codes", "scales", "others"), found, strict=True)
                ),
                wanted=", ".join(str(one)[:12] for one in wanted),
                do=(
                    "Something trained or repacked what must stay as it is; please report it with"
                    " phisense doctor's output"
                ),
            )

    def _finish(self, folder: Path, model: Any) -> None:
        with artifacts.translate_disk_errors(folder):
            trainable.save_trained(model, folder)
            plot_losses(folder / "metrics.jsonl", folder / "loss.png")
        artifacts.write_json(folder / "train.json", self.facts)
        run_folder.finish_run(
            folder,
            {"recipe": self.recipe.name, "base": "nf4" if self.recipe.train.quantize else "full"},
        )


def count_trainer_steps(trainer: StageTrainer, samples: Samples) -> int:
    """Number of optimizer steps that a trainer will take."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    per_step = (
        trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.processes.world_size
    )
    per_epoch = max(1, -(-len(samples) // per_step))
    return int(per_epoch * trainer.args.num_train_epochs)
