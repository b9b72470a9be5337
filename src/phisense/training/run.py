"""The stages, as the recipe has them: parts -> model -> freeze -> data -> align -> instruct, and further ones -> run folder.

runs/<name>/recipe.yaml          the resolved recipe
            metrics.jsonl        one line for each log step
            loss.png             the loss curves
            train.json           what was trainable, how far the projector moved, whether the model looks, tokens and seconds
            adapter/             LoRA and projector, in PEFT's format; after full fine-tuning weights/
            stages/              each finished stage's weights; its checkpoints while it runs
            manifest.json        written last: a run without it never finished
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PrinterCallback, set_seed

from .. import artefact
from ..errors import ArtefactError, TrainingError
from ..model import Phi3WithProjector, picture_slots, trained
from ..model.arithmetic import Arithmetic, choose
from ..model.calibrate import calibrate
from ..model.lora import check_targets
from ..model.quantized import codes_digest, require_readable, scales_digest
from ..parts import fingerprint, resolve_part
from ..processes import Processes, this_process
from ..recipe import Recipe, Stage
from ..vision.encoders import Encoder, encoder_facts
from ..vision.store import FeatureStore
from . import checkpoints
from .data import Collator, Samples
from .gradient_check import GradientCheck
from .guard import Guard
from .log import Log
from .plot import plot_losses
from .runs import KIND, held
from .stopping import Termination
from .trainer import Reporter, StageTrainer, arguments
from .verdict import Looks
from .watch import Judge, Watch, watched_questions

PICTURES_TO_CALIBRATE = 64
Report = Callable[[dict[str, Any]], None]


@dataclass
class Training:
    """One run of `train`. `report` gets every log line: stage, step, steps, loss, tokens_per_second, memory, seconds; or of a step that
    was not taken `skipped` and `why`; or of held-out questions `held_out` and `blind`, the shares that `judge` calls right with and
    without the picture, and `answers`."""

    recipe: Recipe
    report: Report
    resume: bool = False
    accept_changes: bool = False
    judge: Judge | None = None
    device: str = "auto"
    processes: Processes = field(default_factory=this_process)
    facts: dict[str, Any] = field(default_factory=dict)
    arithmetic: Arithmetic = field(init=False)
    _scales: str | None = field(init=False, default=None)

    def __call__(self) -> dict[str, Any]:
        """Trains, writes the run folder, returns the content of `train.json`.

        Raises TrainingError if another process trains in it, TerminatedError, with a checkpoint written, on SIGTERM.
        """
        folder = self.recipe.run
        if self.resume and not folder.is_dir():
            raise ArtefactError(f"there is no run {folder} to resume", do="Train without --resume")
        with held(folder) if self.processes.first else nullcontext():
            return self._run(folder)

    def _run(self, folder: Path) -> dict[str, Any]:
        started = time.monotonic()
        recipe = self.recipe
        self.arithmetic = choose("train", self.device, asked=recipe.compute_dtype)
        self.facts["arithmetic"] = self.arithmetic.as_dict()
        store = self._open_store()
        set_seed(recipe.seed)
        built = self._build(store)
        if self.processes.first:
            self._prepare(folder)
        self.processes.wait()
        trained.only_projector(built)
        self._calibrate(built, store)
        before = trained.snapshot(built.projector)
        self.facts["stages"] = {}
        if recipe.train.align is not None:
            self._stage("align", recipe.train.align, built, built.model, store)
            self.facts["stages"]["align"]["projector_change"] = trained.change(before, built.projector)
        model = trained.with_language(built, recipe)
        self.facts |= trained.count(model, recipe)
        for name in (name for name in recipe.train.stages if name != "align"):
            self._stage(name, recipe.train.stages[name], built, model, store)
        self.facts["looks"] = self.facts["stages"][list(recipe.train.stages)[-1]].pop("looks", Looks().as_dict())
        self.facts["projector_change"] = trained.change(before, trained.projector_of(model))
        if not self.facts["projector_change"] > 0:
            raise TrainingError(
                "training did not move the projector",
                got="a change of 0",
                wanted="more",
                do="In a warm-up the first step's rate is 0: take more steps, or warm_up: 0. Else it is a fault of phisense",
            )
        self.facts["seconds"] = time.monotonic() - started
        if self.processes.first:
            self._finish(folder, model)
        self.processes.wait()
        return self.facts

    def _build(self, store: FeatureStore) -> Phi3WithProjector:
        """The model without a vision tower, or with the one through which the store reads its pictures if that is trained along."""
        recipe = self.recipe
        how = self.arithmetic
        dtype = torch.float32 if recipe.train.lora is None else how.dtype  # what is trained is float32; autocast computes
        built = Phi3WithProjector.from_recipe(
            recipe, quantise=recipe.train.quantise, stored_features=True, device=str(how.device), dtype=dtype
        )
        built.model.set_attn_implementation({"text_config": how.attention})
        require_readable(built.model, "training")
        self.facts["four_bit_codes"] = codes_digest(built.model)
        self.facts["language_fingerprint"] = fingerprint(resolve_part(recipe.language.part))
        self._scales = scales_digest(built.model)
        if recipe.train.lora is not None:
            check_targets(built.model, recipe.train.lora.targets)
        if recipe.tunes_vision:
            assert store.live is not None
            built.model.model.vision_tower = store.live.model
        return built

    def _prepare(self, folder: Path) -> None:
        if not self.resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / artefact.MANIFEST).unlink(missing_ok=True)
        artefact.write_bytes(folder / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False).encode())

    def _open_store(self) -> FeatureStore:
        vision, dtype = self.recipe.vision, self.recipe.features.dtype
        live = None
        if dtype == "pixels":
            how = self.arithmetic
            live = Encoder(vision.part, vision.encoder, vision.layer, device=str(how.device), dtype=how.dtype)
        return FeatureStore(self.recipe.store, facts=encoder_facts(vision.part, vision.encoder, vision.layer), dtype=dtype, live=live)

    def _calibrate(self, built: Phi3WithProjector, store: FeatureStore) -> None:
        """Fits the fresh projector to the parts, by the features of some pictures; not of those that the watched questions are about.

        One that was trained before (`start`) stays as it is.
        """
        if self.recipe.start is not None:
            return
        held_out = {question.image for question in watched_questions(self.recipe)}
        names = [name for name in store.names if name not in held_out] or store.names
        some = random.Random(self.recipe.seed).sample(names, min(len(names), PICTURES_TO_CALIBRATE))
        features = torch.stack([store.features(name).float() for name in some]).to(built.device)
        self.facts["calibration"] = calibrate(built.projector, features, built.model.get_input_embeddings().weight)

    def _stage(self, name: str, stage: Stage, built: Phi3WithProjector, model: Any, store: FeatureStore) -> None:
        """Trains one stage, or takes its weights if a resumed run had finished it."""
        folder = self.recipe.run / "stages" / name
        samples = Samples(
            [(self.recipe.path(one.path), one.weight) for one in self.recipe.data_of(name)],
            built.prompt,
            {side: picture_slots(built.model.config, side) for side in self.recipe.projector.nested or (1,)},
            stage.length,
            share=self.recipe.train.share_pictures,
            seed=self.recipe.seed,
        )
        missing = sorted(picture for picture in samples.pictures if picture not in store)
        if missing:
            raise ArtefactError(
                f"the feature store {store.folder} lacks pictures of stage {name}",
                got=f"{len(missing)}, the first {missing[0]}",
                do="Run phisense features again",
            )
        about = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"root", "compute_dtype"}),  # which `computes_in` tells
            "stage": name,
            "data": {"conversations": samples.conversations, "sha256": samples.digest},
            "features": {"encoder": store.encoder, "sha256": store.digest},
            "computes_in": self.arithmetic.format,
            "language": {"fingerprint": self.facts["language_fingerprint"], "four_bit_codes": self.facts["four_bit_codes"]},
        }
        if self.resume and (folder / artefact.MANIFEST).is_file():
            made = artefact.read_manifest(folder, kind="stage")
            if not self.accept_changes:
                checkpoints.refuse_changes(folder, made["about"], about)
            self.facts["stages"][name] = made["facts"]
            checkpoints.load_stage(model, folder)
            return
        facts = self._train(name, stage, folder, samples, built, model, store, about)
        self._check_codes(name, built)
        self.facts["stages"][name] = facts
        if self.processes.first:
            with artefact.staged(folder, kind="stage", about={"facts": facts, "about": about}) as aside:
                checkpoints.save_stage(model, aside)

    def _train(
        self,
        name: str,
        stage: Stage,
        folder: Path,
        samples: Samples,
        built: Phi3WithProjector,
        model: Any,
        store: FeatureStore,
        about: dict[str, Any],
    ) -> dict[str, Any]:
        recipe = self.recipe
        cpu = built.device.type == "cpu"
        collate = Collator(
            store.pixels if recipe.tunes_vision else store.batch,
            built.prompt.end_of_text_id,
            attention=self.arithmetic.attention,
            multiple=self.arithmetic.token_multiple,
        )
        steps = stage.max_steps if stage.max_steps > 0 else round(stage.epochs * samples.conversations / stage.batch)
        rows = samples.rows_at_once(stage.batch, stage.micro_batch, self.processes.count)
        args = arguments(
            stage,
            folder,
            seed=recipe.seed,
            rows=rows,
            passes=samples.rows_for(stage.batch) // rows // self.processes.count,
            log_every=recipe.train.log_every,
            save_every=max(20, min(500, steps // 4)),
            bf16=self.arithmetic.dtype is torch.bfloat16,
            cpu=cpu,
            checkpointing=recipe.train.checkpointing,
            report_to=recipe.train.report_to,
            skip_bad_steps=recipe.train.bad_step == "skip",
        )
        last = checkpoints.newest_verified(folder, about=None if self.accept_changes else about) if self.resume else None
        done = checkpoints.step_of(last) if last else 0
        log = Log(recipe.run / "metrics.jsonl", name, collate, self.report, self.processes)
        if self.processes.first:
            log.keep(done)
        termination = Termination(self.processes)
        watch = Watch(built, store, recipe, self.judge, log, stage=name)
        guard = Guard(recipe.train, self.processes, log)
        trainer = StageTrainer(
            model=model,
            args=args,
            train_dataset=samples,
            data_collator=collate,
            callbacks=[Reporter(log), watch, termination],
            stage=stage,
            about=about,
            guard=guard,
            processes=self.processes,
        )
        check = GradientCheck(
            samples,
            collate,
            trainer.loss_of,
            self.arithmetic.dtype,
            self.processes,
            lambda: watch.facts["held_out"] is not None,
            recipe.seed,
        )
        trainer.add_callback(check)  # behind the look
        trainer.remove_callback(PrinterCallback)  # lines go through `report`
        log({"step": 0, "steps": trainer_steps(trainer, samples)})
        started = time.monotonic()
        with termination:
            result = trainer.train(resume_from_checkpoint=str(last) if last else None)
        watch.finish(model, result.global_step)
        if last and done == result.global_step:  # nothing was left to do, so Trainer did not look at them
            trainer._load_rng_state(str(last))
        seconds = time.monotonic() - started - sum(one["seconds"] for one in check.results)
        tokens = int(self.processes.total(collate.tokens))
        return {
            "samples": samples.conversations,
            "data": samples.sets,
            "rows": len(samples),
            "shortened": samples.shortened,
            "steps": result.global_step,
            "loss": result.training_loss,
            "last_loss": log.last_loss,
            **watch.facts,
            "gradient_check": check.results,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }

    def _check_codes(self, stage: str, built: Phi3WithProjector) -> None:
        """Raises TrainingError if the frozen 4-bit weights are not those that the run began with."""
        found, wanted = (codes_digest(built.model), scales_digest(built.model)), (self.facts["four_bit_codes"], self._scales)
        if found != wanted:
            raise TrainingError(
                f"the frozen 4-bit weights changed in stage {stage}",
                got=f"codes {str(found[0])[:12]}, scales {str(found[1])[:12]}",
                wanted=f"{str(wanted[0])[:12]}, {str(wanted[1])[:12]}",
                do="Something trained or repacked what must stay as it is; please report it with phisense doctor's output",
            )

    def _finish(self, folder: Path, model: Any) -> None:
        with artefact.writing(folder):
            trained.write(model, folder)
            plot_losses(folder / "metrics.jsonl", folder / "loss.png")
        artefact.write_json(folder / "train.json", self.facts)
        for leftover in (folder / "stages").rglob("checkpoint-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        artefact.write_manifest(
            folder, kind=KIND, about={"recipe": self.recipe.name, "base": "nf4" if self.recipe.train.quantise else "full"}
        )


def trainer_steps(trainer: StageTrainer, samples: Samples) -> int:
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    per_step = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.processes.count
    per_epoch = max(1, -(-len(samples) // per_step))
    return int(per_epoch * trainer.args.num_train_epochs)
