"""Every key of a recipe takes effect: each has a reader where the work is done, and for most of
them another value is shown to change what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

import phisense
from phisense.distributed import ProcessGroup, current_process_group
from phisense.errors import PhisenseError
from phisense.intervals import Interval
from phisense.merging.gate import gate_of
from phisense.merging.probes import choose_probes
from phisense.model import Phi3WithProjector, trainable
from phisense.model.arithmetic import choose_arithmetic
from phisense.pipeline.features import encode_features
from phisense.pipeline.results import MergeMeasurement
from phisense.recipe import Recipe, load_recipe
from phisense.training.eval_callback import EvalCallback, eval_questions
from phisense.training.loss_guard import LossGuard
from phisense.training.optimizer import stage_optimizer
from phisense.training.preflight import preflight
from phisense.training.run_context import RunContext
from phisense.training.stage_plan import _arguments
from phisense.vision.encoders.encode import Encoder

from .readers import Readers, keys
from .tiny import make_root

SOURCE = Path(phisense.__file__).parent
#: Who reads a key only to plan, vary, show or record it.
ONLOOKERS = {
    "recipe", "doctor", "cli", "tuning", "comparing.py", "practice", "showing.py",
    "model/training_record.py",
}  # fmt: skip


@cache
def readers() -> Readers:
    sources = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
    return Readers(
        Recipe,
        [
            (name, path.read_text())
            for name, path in sources.items()
            if name not in ONLOOKERS and name.partition("/")[0] not in ONLOOKERS
        ],
    )


@pytest.mark.parametrize(
    ("path", "section", "key"), [pytest.param(*one, id=one[0]) for one in keys(Recipe)]
)
def test_a_key_has_a_reader(path: str, section: type[BaseModel], key: str) -> None:
    assert readers().reads[section, key], f"nothing reads {path}"


class Inner(BaseModel):
    batch_size: int = 1
    unread: int = 2


class Other(BaseModel):
    batch_size: int = 1
    hidden: int = 3


class Toy(BaseModel):
    inner: Inner = Inner()
    other: dict[str, Other] = {}

    @property
    def double(self) -> int:
        """Read by a property."""
        return 2 * next(iter(self.other.values())).hidden


READS = """
def work(toy: Toy, unread: int) -> int:
    for name, one in toy.other.items():
        print(one.batch_size)
    print(toy.unread, unread)
"""


def unread(source: str) -> set[str]:
    found = Readers(Toy, [("toy.py", source)])
    return {path for path, section, key in keys(Toy) if not found.reads[section, key]}


def test_a_key_that_nothing_reads_is_found_out() -> None:
    """Neither another section's key of the same name nor another thing of that name counts."""
    assert unread(READS) == {"inner", "inner.batch_size", "inner.unread", "other.hidden"}


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("print(toy.inner.batch_size)", {"inner", "inner.batch_size"}),
        ("its = toy.inner; print(its.batch_size, its.unread)", {"inner.unread"}),
        ("print(toy.double)", {"other.hidden"}),
        ("print([one.hidden for one in toy.other.values()])", {"other.hidden"}),
        ("toy.inner.unread = 5", {"inner"}),  # what is written is not read
    ],
)
def test_a_reader_is_found(line: str, read: set[str]) -> None:
    left = unread(f"{READS}    {line}\n")
    assert read <= unread(READS) - left
    if line.startswith("toy.inner.unread ="):
        assert "inner.unread" in left


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    make_root(made)
    return made


def schedule(recipe: Recipe) -> Any:
    """The samples of each stage, and what its Trainer is told."""
    arithmetic = choose_arithmetic("train", "cpu", compute_dtype=recipe.compute_dtype)
    store: Any = None
    run = RunContext(recipe, {}, arithmetic, store, current_process_group(), print, None)
    found = {}
    for name, ahead in preflight(recipe).items():
        stage = recipe.train.stages[name]
        told = _arguments(run, stage, ahead, recipe.run).to_dict()
        held = ahead.samples.digest, ahead.samples.lengths, ahead.rows, ahead.passes, ahead.steps
        found[name] = told, held
    return found


def model(recipe: Recipe) -> Any:
    """Class, configuration, trained weights and their LoRA."""
    with torch.device("meta"):
        built = Phi3WithProjector.meta_from_recipe(recipe)
        trainable.freeze_all_but_projector(built)
        trained = trainable.unfreeze_language(built, recipe)
    lora = {name: config.to_dict() for name, config in getattr(trained, "peft_config", {}).items()}
    shapes = {name: p.shape for name, p in trained.named_parameters() if p.requires_grad}
    return built.model.config.to_dict(), shapes, lora, built.window


def optimizer(recipe: Recipe) -> Any:
    weights = {
        name: torch.nn.Parameter(torch.zeros(2, 2)) for name in ("multi_modal_projector", "o")
    }
    made = stage_optimizer(weights.items(), recipe.train.instruct)
    return type(made), [(group["lr"], group["weight_decay"]) for group in made.param_groups]


def sharded(recipe: Recipe) -> Any:
    """Whether two processes share the model."""
    arithmetic, store = choose_arithmetic("train", "cpu", compute_dtype="float32"), None
    run: Any = RunContext(recipe, {}, arithmetic, store, ProcessGroup(0, 2), print, None)  # type: ignore[arg-type]
    return run.shards


def folders(recipe: Recipe) -> Any:
    return recipe.run, recipe.model, recipe.store, recipe.image_folders


def evaluation(recipe: Recipe) -> Any:
    """The held-out questions that are asked in training, and after which of 40 steps."""
    questions = eval_questions(recipe)

    class Store(set[str]):
        folder = recipe.store

    store: Any = Store(question.image for question in questions if question.image)
    asks = EvalCallback(
        None,
        store,
        recipe,
        lambda said, answers: True,
        print,
        stage="instruct",  # type: ignore[arg-type]
    )
    return (
        [question.text for question in asks.final_questions],
        [question.text for question in asks.questions],
        asks._eval_steps(40),
    )


def gate(recipe: Recipe) -> Any:
    """Which figures of a merge that lost a little of everything pass."""
    measured = MergeMeasurement(
        loss=1.0,
        same_answers=0.95,
        delta_loss=0.1,
        delta_accuracy=Interval(-0.2, -0.3, -0.1),
        lost=Interval(0.1, 0.05, 0.2),
        lost_answers=10,
    )
    return [one.passes for one in gate_of(recipe).judge(measured)]


def probes(recipe: Recipe) -> Any:
    return [(probe.question.text, probe.visual is None) for probe in choose_probes(recipe)]


def spike(recipe: Recipe) -> None:
    """Twelve steps of loss 1, then one of 4."""
    guard = LossGuard(recipe.train, current_process_group(), lambda row: None)
    for loss in (*[1.0] * 12, 4.0):
        guard.record(torch.tensor(loss), ("row",))
        guard.on_pre_optimizer_step(
            None,  # type: ignore[arg-type]
            type("State", (), {"global_step": 1, "max_steps": 2})(),
            None,  # type: ignore[arg-type]
            model=torch.nn.Linear(1, 1),
            optimizer=None,
        )


def features(recipe: Recipe) -> Any:
    """The files of the store, and how many pictures were encoded at once."""
    sizes: list[int] = []
    encode = Encoder.encode

    def noting(self: Encoder, images: Any) -> Any:
        sizes.append(len(images))
        return encode(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", noting)
        made = encode_features(recipe, device="cpu", overwrite=True)
    return sorted(path.name for path in recipe.store.glob("*")), sizes, made.to_dict()


@dataclass(frozen=True)
class Proof:
    """With `change`, `observe` gives something else, or an error, as compared to without."""

    observe: Callable[[Recipe], Any]
    change: str
    base: tuple[str, ...] = ()


ALL = "data.held_out=[rows.json]"
PIXELS = "features.dtype=pixels"
FURTHER = "train.further={more: {data: [rows.json], max_steps: 2, batch_size: 6}}"
#: Key -> a change of it alone.
PROOFS = {
    "name": Proof(folders, "name=other"),
    "root": Proof(folders, "root=elsewhere"),
    "seed": Proof(schedule, "seed=7"),
    "compute_dtype": Proof(schedule, "compute_dtype=bfloat16", ("compute_dtype=float32",)),
    "start": Proof(model, "start=nowhere", ()),
    "language.part": Proof(model, "language.part=./nowhere"),
    "language.window": Proof(model, "language.window=128"),
    "vision.part": Proof(model, "vision.part=./nowhere"),
    "vision.encoder": Proof(model, "vision.encoder=dinov2"),
    "vision.layer": Proof(model, "vision.layer=-1"),
    "vision.size": Proof(model, "vision.size=40"),
    "projector.kind": Proof(model, "projector.kind=linear"),
    "projector.pool": Proof(model, "projector.pool=2"),
    "projector.nested": Proof(model, "projector.nested=[1,2]"),
    "data.images": Proof(folders, "data.images=[other]"),
    "data.align": Proof(schedule, "data.align=[rows.json, rows.json]"),
    "data.align.path": Proof(schedule, "data.align=[nowhere.json]"),
    "data.align.weight": Proof(schedule, "data.align=[{path: rows.json, weight: 0.5}]"),
    "data.instruct": Proof(schedule, "data.instruct=[rows.json, rows.json]"),
    "data.held_out": Proof(evaluation, "data.held_out=[]"),
    "features.dtype": Proof(features, "features.dtype=float32"),
    "features.folder": Proof(folders, "features.folder=other"),
    "features.batch_size": Proof(features, "features.batch_size=2"),
    "features.shard_size": Proof(features, "features.shard_size=2"),
    "train.align": Proof(schedule, "train.align=null"),
    "train.instruct.epochs": Proof(schedule, "train.instruct.epochs=3"),
    "train.instruct.max_steps": Proof(schedule, "train.instruct.max_steps=5"),
    "train.instruct.batch_size": Proof(schedule, "train.instruct.batch_size=12"),
    "train.instruct.micro_batch_size": Proof(
        schedule, "train.instruct.micro_batch_size=1", ("train.share_pictures=false",)
    ),
    "train.instruct.learning_rate": Proof(optimizer, "train.instruct.learning_rate=0.5"),
    "train.instruct.projector_learning_rate": Proof(
        optimizer, "train.instruct.projector_learning_rate=0.5"
    ),
    "train.instruct.projector_optimizer": Proof(
        optimizer, "train.instruct.projector_optimizer=muon"
    ),
    "train.instruct.warmup_ratio": Proof(schedule, "train.instruct.warmup_ratio=0.5"),
    "train.instruct.weight_decay": Proof(optimizer, "train.instruct.weight_decay=0.5"),
    "train.instruct.max_grad_norm": Proof(schedule, "train.instruct.max_grad_norm=0.5"),
    "train.instruct.max_length": Proof(schedule, "train.instruct.max_length=16"),
    "train.further": Proof(schedule, FURTHER),
    "train.further.data": Proof(
        schedule,
        "train.further={more: {data: [nowhere.json], max_steps: 2, batch_size: 6}}",
        (FURTHER,),
    ),
    "train.lora": Proof(model, "train.lora=null", ("train.quantize=false",)),
    "train.lora.rank": Proof(model, "train.lora.rank=2"),
    "train.lora.alpha": Proof(model, "train.lora.alpha=2"),
    "train.lora.dropout": Proof(model, "train.lora.dropout=0.5"),
    "train.lora.target_modules": Proof(model, "train.lora.target_modules=.*o_proj"),
    "train.lora.vision": Proof(model, "train.lora.vision=true", (PIXELS,)),
    "train.shard": Proof(sharded, "train.shard=true", ("train.quantize=false",)),
    "train.gradient_checkpointing": Proof(schedule, "train.gradient_checkpointing=false"),
    "train.share_pictures": Proof(schedule, "train.share_pictures=false"),
    "train.bad_step": Proof(schedule, "train.bad_step=skip"),
    "train.spike": Proof(spike, "train.spike=2.0"),
    "train.eval.questions": Proof(evaluation, "train.eval.questions=2"),
    "train.eval.times": Proof(evaluation, "train.eval.times=2"),
    "train.eval.final_questions": Proof(
        evaluation, "train.eval.final_questions=5", ("train.eval.questions=2",)
    ),
    "train.log_every": Proof(schedule, "train.log_every=3"),
    "train.checkpoint_every": Proof(schedule, "train.checkpoint_every=3"),
    "train.report_to": Proof(schedule, "train.report_to=[clearml]"),  # not installed: refused
    "merge.samples": Proof(probes, "merge.samples=2"),
    "merge.max_delta_loss": Proof(gate, "merge.max_delta_loss=0.5"),
    "merge.max_lost_accuracy": Proof(gate, "merge.max_lost_accuracy=0.15"),
    "merge.max_lost_answers": Proof(gate, "merge.max_lost_answers=0.07"),
    "merge.min_same_answers": Proof(gate, "merge.min_same_answers=0.99"),
}


def observed(root: Path, proof: Proof, *changes: str) -> str:
    try:
        recipe = load_recipe(root / "tiny.yaml", (*proof.base, *changes))
        return repr(proof.observe(recipe))
    except PhisenseError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("key", PROOFS)
def test_another_value_changes_something(key: str, root: Path) -> None:
    proof = PROOFS[key]
    before = observed(root, proof)
    assert before == observed(root, proof), "what is observed must not vary by itself"
    assert before != observed(root, proof, proof.change)


def test_a_proof_notices_a_key_without_effect(root: Path) -> None:
    """The control: the optimizer does not depend on images, nor the schedule on the merge."""
    for observe, change in ((optimizer, "data.images=[other]"), (schedule, "merge.samples=2")):
        proof = Proof(observe, change)
        assert observed(root, proof) == observed(root, proof, change)


def test_the_proofs_are_of_keys() -> None:
    known = {path for path, _, _ in keys(Recipe)}
    assert set(PROOFS) <= known
