"""Training proves its gradient: it is right for whatever can be trained, in each number format;
each known way of being wrong trips it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from phisense.errors import PhisenseError, TrainingError
from phisense.model import assembly, quantized
from phisense.pipeline.progress import Event, TrainingStep
from phisense.prompt import IGNORE_INDEX, Rendered
from phisense.recipe import load_recipe
from phisense.training import Training, gradient_check, stage_run, trainer
from phisense.training.heap_callback import HeapCallback
from phisense.training.packing import PackedRow

from ..conftest import LONG
from ..tiny import make_root

pytestmark = pytest.mark.slow

FORMATS = ("float32", "bfloat16")
FULL = ("train.lora=null", "train.quantize=false")
TOWER = ("train.lora.vision=true", "features.dtype=pixels")
Fault = Callable[[Any], None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    folder = tmp_path_factory.mktemp("gradient")
    make_root(folder)
    for dtype in ("float16", "int8", "float32", "pixels"):
        verb(
            "features",
            folder / "tiny.yaml",
            "--set",
            f"features.dtype={dtype}",
            "--set",
            f"features.folder=features/{dtype}",
        )
    return folder


def train(root: Path, name: str, *changes: str, **options: Any) -> dict[str, Any]:
    store = next(
        (one.partition("=")[2] for one in reversed(changes) if one.startswith("features.dtype=")),
        "float16",
    )
    its = (f"name={name}", f"features.folder=features/{store}", "train.log_every=1", *changes)
    return Training(
        load_recipe(root / "tiny.yaml", its),
        lambda row: None,
        device="cpu",
        overwrite=not options.get("resume"),
        **options,
    )().to_dict()


def checks(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for stage in facts["stages"].values() for one in stage["gradient_check"]]


#: What may be trained, with what it is trained on and how.
RIGHT = [
    ("train.lora.dropout=0.3",),
    ("train.lora.dropout=0.3", "train.gradient_checkpointing=false"),
    ("train.share_pictures=false", "train.instruct.micro_batch_size=1"),
    ("features.dtype=int8",),
    ("features.dtype=float32", "train.quantize=false"),
    ("features.dtype=pixels",),
    ("projector.pool=2", "projector.kind=pixel_shuffle"),
    ("projector.nested=[1, 2]",),
    ("projector.kind=linear", "train.instruct.projector_optimizer=adamw"),
    FULL,
    (*FULL, "train.gradient_checkpointing=false"),
    TOWER,
    (*TOWER, "train.quantize=false", "train.lora.dropout=0.1"),
]
#: In float32, which rounds less, one for each kind of weights that is trained.
CASES = [
    (compute, changes)
    for changes in RIGHT
    for compute in FORMATS
    if LONG or compute == "bfloat16" or changes in (RIGHT[0], FULL, RIGHT[-1])
]


@pytest.mark.parametrize(
    ("compute", "changes"), CASES, ids=lambda one: " ".join([one] if isinstance(one, str) else one)
)
def test_a_right_gradient_passes(root: Path, compute: str, changes: tuple[str, ...]) -> None:
    facts = train(
        root,
        "right",
        f"compute_dtype={compute}",
        "train.eval.times=2",
        *changes,
        is_correct=lambda said, right: True,
    )
    assert [one["when"] for one in checks(facts)] == [
        "before the first step",
        "after the first look",
    ] * 2
    assert facts["arithmetic"]["format"] == compute
    found = [part for one in checks(facts) for part in one["parts"]]
    assert all(part["error"] is not None and part["error"] < 0.02 for part in found), (
        "far from what is refused"
    )
    assert all(
        part["cosine"] is None or part["cosine"] > (0.9999 if compute == "float32" else 0.98)
        for part in found
    )
    names = {
        part["part"]
        for one in facts["stages"]["instruct"]["gradient_check"]
        for part in one["parts"]
    }
    kind = "weights" if changes[: len(FULL)] == FULL else "LoRA"
    assert {"the projector", f"{kind} of language layer 0", f"{kind} of language layer 1"} <= names
    assert ("LoRA of vision layer 0" in names) == (changes[: len(TOWER)] == TOWER)


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Puts a fault into every model that is handed to a trainer."""
    begin = trainer.StageTrainer.__init__

    def faulty(self: Any, *args: Any, **kwargs: Any) -> None:
        fault(kwargs["model"])
        begin(self, *args, **kwargs)

    monkeypatch.setattr(trainer.StageTrainer, "__init__", faulty)


def layers(model: Any) -> Any:
    return next(
        module.layers for name, module in model.named_modules() if name.endswith("language_model")
    )


def without_gradient(model: Any) -> None:
    """What bitsandbytes' repacked layers do, on processors that have no such kernels, too: right
    products without a gradient.
    """
    for _, layer in quantized.four_bit_layers(model):
        weight = quantized.dequantized_weight(layer)
        layer.forward = lambda x, weight=weight: nn.functional.linear(
            x.detach().float(), weight
        ).to(x.dtype)


def detached_projector(model: Any) -> None:
    projector = next(
        module for name, module in model.named_modules() if name.endswith("multi_modal_projector")
    )
    projector.register_forward_hook(lambda module, given, made: made.detach())


def doubled_backward(model: Any) -> None:
    layers(model)[1].register_full_backward_hook(
        lambda module, into, out: tuple(2 * one if one is not None else None for one in into)
    )


def doubled_weight(model: Any) -> None:
    weight = next(
        p
        for name, p in model.named_parameters()
        if (p.requires_grad and "layers.1" in name) or "projector.linear_2.weight" in name
    )
    weight.register_hook(lambda gradient: 2 * gradient)


@pytest.mark.parametrize("compute", FORMATS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            without_gradient,
            (
                "the gradient of the projector is not what the same model gives in float32; got"
                " cosine .* 4-bit layers"
            ),
        ),
        (
            detached_projector,
            (
                "the gradient of the projector is not the derivative of the loss; got no gradient,"
                " though .* detached"
            ),
        ),
        (
            doubled_backward,
            (
                r"the gradient of the projector is not the derivative of the loss; got an error of"
                r" .* 0\.50. times it .* a hook"
            ),
        ),
        (
            doubled_weight,
            "the gradient of .* is not the derivative of the loss; got an error of .* a hook",
        ),
    ],
)
def test_a_wrong_gradient_is_named(
    root: Path, compute: str, fault: Fault, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, fault)
    with pytest.raises(TrainingError, match=words):
        train(root, "wrong", f"compute_dtype={compute}")
    assert not (root / "runs" / "wrong" / "train.json").exists()


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([(1.0, 0.001)], False),
        ([(1.3, 0.4), (1.012, 0.016)], False),  # a bend: the shorter step fits
        # rounding below, a bend above: nothing can be said
        ([(1.3, 0.4), (1.05, 0.9), (8.0, 10.0)], False),
        ([(0.5, 0.5), (0.5, 0.52), (0.47, 0.6)], True),
        # right along itself, and something is missing
        ([(1.0, 0.3), (1.001, 0.31), (0.98, 0.33)], True),
        ([(None, math.inf), (None, math.inf), (None, math.inf)], True),
    ],
)
def test_wrong_is_what_is_wrong_alike_at_two_steps(steps: list[Any], wrong: bool) -> None:
    if wrong:
        with pytest.raises(
            TrainingError, match="the gradient of a part is not the derivative of the loss"
        ):
            gradient_check._compare_to_differences("a part", steps)
    else:
        gradient_check._compare_to_differences("a part", steps)


@pytest.mark.parametrize("compute", FORMATS)
def test_a_recomputation_with_another_mask_is_named(
    root: Path, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = trainer.TrainingArguments

    def forgetful(**given: Any) -> Any:
        return usual(
            **{
                **given,
                "activation_checkpointing_kwargs": {
                    "use_reentrant": False,
                    "preserve_rng_state": False,
                },
            }
        )

    monkeypatch.setattr(trainer, "TrainingArguments", forgetful)
    with pytest.raises(
        TrainingError,
        match=(
            "the gradient of LoRA of language layer . is not the derivative .* other random numbers"
        ),
    ):
        train(root, "forgetful", f"compute_dtype={compute}", "train.lora.dropout=0.05")
    # without a mask there is nothing to forget
    train(root, "no-dropout", f"compute_dtype={compute}")


def test_a_fault_that_comes_with_the_first_look(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was: layers that are right until they were asked something in evaluation mode."""
    from phisense.training import eval_callback

    answers = eval_callback.EvalCallback._answers

    def spoiling(self: Any, model: Any, *rest: Any, **more: Any) -> Any:
        without_gradient(model)
        return answers(self, model, *rest, **more)

    monkeypatch.setattr(eval_callback.EvalCallback, "_answers", spoiling)
    told: list[Event] = []
    with pytest.raises(TrainingError, match="the gradient of the projector is not what"):
        Training(
            load_recipe(root / "tiny.yaml", ("name=spoilt", "features.folder=features/float16")),
            told.append,
            is_correct=lambda *_: True,
        )()
    assert {event.stage for event in told if isinstance(event, TrainingStep)} == {"align"}, (
        "named before instruct begins"
    )


def test_layers_that_may_repack_themselves_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault put back: nothing forbids the repacking. It is refused before a step is taken, on
    any processor.
    """

    def free(model: Any) -> None:
        for _, layer in quantized.four_bit_layers(model):
            layer.support_avx512bf16_for_cpu = True

    monkeypatch.setattr(assembly, "forbid_repacking", free)
    with pytest.raises(
        PhisenseError,
        match=(
            "training needs 4-bit layers as .* got 8 that are or may be laid out for inference, .*"
            " free to"
        ),
    ):
        train(root, "free")


@pytest.mark.parametrize("compute", FORMATS)
def test_rows_that_are_learned_already_do_not_trip_it(root: Path, compute: str) -> None:
    """The loss ends near zero: the gradient of the answers themselves is what rounding leaves of
    it.
    """
    rates = (
        "train.instruct.learning_rate=0.01",
        "train.instruct.max_steps=120",
        "train.log_every=10",
        "train.spike=null",
    )
    facts = train(
        root,
        f"learned-{compute}",
        f"compute_dtype={compute}",
        "train.align=null",
        "train.eval.times=1",
        *FULL,
        *rates,
        is_correct=lambda *_: True,
    )
    assert facts["stages"]["instruct"]["last_loss"] < 0.01
    last = checks(facts)[-1]
    assert last["when"] == "after the first look"
    # of the answers themselves: 0.990 and 0.889 in bfloat16
    assert min(part["cosine"] for part in last["parts"]) > 0.998
    assert all(abs(part["norm_ratio"] - 1) < 0.03 for part in last["parts"])


@pytest.mark.parametrize(
    ("compute", "outliers", "stopped"),
    [("bfloat16", 2, False), ("bfloat16", 3, True), ("float32", 1, True)],
)
def test_rounding_stops_nothing_until_every_draw_disagrees(
    root: Path, monkeypatch: pytest.MonkeyPatch, compute: str, outliers: int, stopped: bool
) -> None:
    """A gradient of few tokens may be far off by rounding alone; other rows and labels tell."""
    drawn: list[int] = []
    real = gradient_check.check_gradient

    def rounded(*args: Any, seed: int = 0) -> Any:
        drawn.append(seed)
        if len(drawn) <= outliers:
            raise gradient_check.TwinError("the gradient is not what it is in float32")
        return real(*args, seed=seed)

    monkeypatch.setattr(gradient_check, "check_gradient", rounded)
    changes = (f"compute_dtype={compute}", "train.align=null")
    if stopped:
        with pytest.raises(TrainingError, match="not what it is in float32"):
            train(root, "outliers", *changes)
        assert len(drawn) == outliers
    else:
        assert checks(train(root, "outliers", *changes))[0]["draws"] == outliers + 1
    assert len(set(drawn)) == len(drawn)


def test_a_check_has_enough_tokens() -> None:
    """Rows of two labels each; one of forty is enough, and so is what fits into memory."""

    class Rows:
        def __init__(self, labels: int) -> None:
            rendered = Rendered([1, *[5] * labels], [IGNORE_INDEX, *[5] * labels])
            self.rows = [PackedRow(rendered, ("a.png",), 1, (1 + labels,))] * 20
            self.lengths = [1 + labels] * 20

        def __len__(self) -> int:
            return len(self.rows)

    few, many = cast(Any, Rows(2)), cast(Any, Rows(40))
    assert len(gradient_check.sample_rows(few, 0, 1000)) == gradient_check.MIN_LABELS // 2
    assert len(gradient_check.sample_rows(many, 0, 1000)) == 1
    assert len(gradient_check.sample_rows(few, 0, 10)) == 3
    assert len(gradient_check.sample_rows(few, 0, 1)) == 1, "one of each kind, whatever it takes"


def test_steps_are_watched_for_holes_and_widen_no_input(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would copy the input of each adapted matrix to float32, for autocast to narrow again."""
    watched: list[int] = []
    widened: list[bool] = []
    real = BaseTunerLayer._cast_input_dtype

    def cast(self: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        found = real(self, x, dtype)
        widened.append(found is not x)
        return found

    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", cast)
    monkeypatch.setattr(HeapCallback, "on_step_end", lambda *args, **kw: watched.append(1))
    facts = train(root, "watched", "compute_dtype=bfloat16")
    assert len(watched) == sum(stage["steps"] for stage in facts["stages"].values())
    assert widened
    assert not any(widened)
    # The control: without the context it does.
    monkeypatch.setattr(stage_run, "disable_input_dtype_casting", nullcontext)
    train(root, "widened", "compute_dtype=bfloat16")
    assert any(widened)


def test_labels_are_drawn_where_they_count() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 5, IGNORE_INDEX, 7, 7, 7, 7, 7]])
    drawn = gradient_check.drawn_labels(labels, 1000, seed=0)
    assert ((drawn == IGNORE_INDEX) == (labels == IGNORE_INDEX)).all()
    counted = drawn[drawn != IGNORE_INDEX]
    assert len(set(counted.tolist())) > 3
    assert 0 <= int(counted.min()) <= int(counted.max()) < 1000
    assert torch.equal(drawn, gradient_check.drawn_labels(labels, 1000, seed=0))


def test_it_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(root, "checked", "train.lora.dropout=0.2")
    with monkeypatch.context() as patch:
        patch.setattr(gradient_check.GradientCheck, "_check", lambda *_: None)
        train(root, "unchecked", "train.lora.dropout=0.2")
    one, other = (
        load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors")
        for name in ("checked", "unchecked")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_checks_again_after_a_resume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("train.align=null", "train.instruct.max_steps=24")

    def stopping(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step == 22:
            raise KeyboardInterrupt

    recipe = load_recipe(
        root / "tiny.yaml",
        ("name=again", "features.folder=features/float16", "train.log_every=1", *changes),
    )
    with pytest.raises(KeyboardInterrupt):
        Training(recipe, stopping, device="cpu")()
    facts = train(root, "again", *changes, resume=True)
    assert [(one["when"], one["step"]) for one in checks(facts)] == [("after a resume", 20)]
    written = json.loads((root / "runs" / "again" / "train.json").read_text())
    assert checks(written)[0]["parts"][0]["error"] < 0.02
