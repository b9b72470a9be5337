"""Two processes that hold half a model each train what one process trains with a whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.doctor.devices import Device
from phisense.doctor.lengths import measure_lengths
from phisense.doctor.memory import training_peak
from phisense.doctor.shapes import read_shapes
from phisense.errors import RecipeError
from phisense.pipeline.train import ONE_PROCESS
from phisense.recipe import load_recipe

from ..conftest import LONG
from ..tiny import make_root
from .sharded_runs import held, run, run_until_killed

pytestmark = pytest.mark.slow

#: In float32 only the order of sums differs.
LOSSES, WEIGHTS = 1e-5, 1e-5
STEPS = 4
KINDS = {
    "full": ["train.lora=null"],
    "LoRA": ["train.lora={rank: 4, alpha: 8, dropout: 0.0}"],
}
SHARD = ["train.shard=true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    """Ten conversations of several lengths, of which every other one has no image; captions for
    alignment have one each.
    """
    root = tmp_path_factory.mktemp("sharded")
    make_root(root)
    rows = json.loads((root / "rows.json").read_text())[:10]
    for i, row in enumerate(rows):
        row["conversations"][1]["value"] = "the circle is red and the star " * (i % 4) + "yes."
    (root / "captions.json").write_text(json.dumps(rows))
    for row in rows[::2]:
        del row["image"]
        question = row["conversations"][0]
        question["value"] = question["value"].replace("<image>\n", "")
    (root / "rows.json").write_text(json.dumps(rows))
    verb("features", root / "tiny.yaml", *settings("tiny", []))
    return root


def settings(name: str, changes: Sequence[str], **stage: Any) -> list[str]:
    """Command line options of a run: `stage` are keys of both stages."""
    both = {"batch_size": 8, "micro_batch_size": 2, "max_steps": STEPS, **stage}
    every = [
        f"name={name}",
        "features.folder=features/tiny",
        "compute_dtype=float32",
        "data.align=[captions.json]",
        "train.quantize=false",
        "train.share_pictures=false",
        "train.log_every=1",
        "train.eval.questions=0",
        *(
            f"train.{one}.{key}={value}"
            for one in ("align", "instruct")
            for key, value in both.items()
        ),
        *changes,
    ]
    return [word for change in every for word in ("--set", change)]


@dataclass(frozen=True)
class Told:
    """What a run said and learned."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def apart(self, other: Told) -> tuple[float, float, float]:
        """The largest differences of losses, of gradient norms and of weights."""
        assert self.weights.keys() == other.weights.keys()
        return (
            max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            max(abs(a - b) for a, b in zip(self.norms, other.norms, strict=True)),
            max(float((self.weights[k] - other.weights[k]).abs().max()) for k in self.weights),
        )


def told(root: Path, name: str) -> Told:
    folder = root / "runs" / name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    adapter = folder / "adapter" / "adapter_model.safetensors"
    whole = folder / "weights" / "trainable.safetensors"
    return Told(
        [row["loss"] for row in rows],
        [row["grad_norm"] for row in rows],
        load_file(adapter if adapter.is_file() else whole),
        json.loads((folder / "train.json").read_text()),
    )


def train(
    root: Path, name: str, count: int, options: Sequence[str], fault: str = ""
) -> tuple[Told, list[tuple[int, int]]]:
    out = root / "told" / name
    run(count, out, ["train", str(root / "tiny.yaml"), "--overwrite", *options], fault)
    return told(root, name), held(out, count)


def same(one: Told, other: Told) -> None:
    losses, norms, weights = one.apart(other)
    assert losses <= LOSSES
    assert norms <= 10 * LOSSES
    assert weights <= WEIGHTS


#: kind, rows of a micro-batch, checkpointing, further settings. One case for each mechanism; all
#: combinations with PHISENSE_LONG.
CASES: list[tuple[str, int, bool, list[str]]] = (
    [(kind, rows, again, []) for kind in KINDS for rows in (1, 4) for again in (True, False)]
    if LONG
    else [("full", 4, True, []), ("full", 1, False, []), ("LoRA", 2, True, [])]
) + [("LoRA", 1, False, ["train.align.projector_optimizer=muon"])]


@pytest.mark.parametrize(("kind", "rows", "again", "more"), CASES)
def test_halves_train_what_a_whole_model_trains(
    root: Path, kind: str, rows: int, again: bool, more: list[str]
) -> None:
    changes = [*KINDS[kind], f"train.gradient_checkpointing={str(again).lower()}", *more]
    one, (alone,) = train(root, "one", 1, settings("one", changes, micro_batch_size=rows))
    two, halves = train(root, "two", 2, settings("two", [*changes, *SHARD], micro_batch_size=rows))
    same(one, two)
    assert alone[0] == alone[1]
    for mine, all_of_it in halves:
        assert all_of_it == alone[1]
        assert mine / all_of_it == pytest.approx(0.5, abs=0.01)
        assert planned_weights(root, [*settings("two", [*changes, *SHARD])[1::2]]) == pytest.approx(
            4 * mine, rel=0.1
        )
    for name in ("plain_weights", "trainable", "modules"):
        assert one.facts[name] == two.facts[name]
    for stage, facts in two.facts["stages"].items():
        assert facts["tokens"] == one.facts["stages"][stage]["tokens"]
        for check in facts["gradient_check"]:
            assert all(part["error"] < 0.02 and part["cosine"] > 0.999 for part in check["parts"])


def planned_weights(root: Path, changes: Sequence[str]) -> float:
    """Bytes of the weights that doctor plans for each of two processes."""
    recipe = load_recipe(root / "tiny.yaml", tuple(changes))
    device = Device("CPU", False, 1e12, "float32", "spans", 0.0, 1e9, "", processes=2)
    shapes = read_shapes(recipe)
    peak = training_peak(
        recipe, "instruct", shapes, device, measure_lengths(recipe, "instruct", shapes)
    )
    return peak.terms["weights"] + peak.terms["trained"]


def test_control_each_process_trains_alone(root: Path) -> None:
    """The comparison finds a model that is neither sharded nor averaged."""
    one, _ = train(root, "one", 1, settings("one", KINDS["full"]))
    options = settings("wrong", [*KINDS["full"], *SHARD])
    wrong, halves = train(root, "wrong", 2, options, "each trains alone")
    losses, norms, weights = one.apart(wrong)
    assert norms > 0.01
    assert losses > 10 * LOSSES
    assert weights > 10 * WEIGHTS
    assert all(mine == whole for mine, whole in halves)


def test_control_gradients_are_summed(root: Path) -> None:
    """A wrong average does not get as far: the gradient check finds twice the derivative."""
    out, name = root / "told" / "summed", "summed"
    options = settings(name, [*KINDS["full"], *SHARD])
    words = ["train", str(root / "tiny.yaml"), "--overwrite", *options]
    with pytest.raises(AssertionError, match=r"is\s+not\s+the\s+derivative"):
        run(2, out, words, "gradients are summed")


def test_a_step_without_images_leaves_the_projector_alone(root: Path) -> None:
    """Two conversations a step, and so some steps without any image in any process."""
    options = {"batch_size": 2, "micro_batch_size": 1, "max_steps": 8}
    changes = [*KINDS["LoRA"], "train.align=null"]
    stage = [f"train.instruct.{key}={value}" for key, value in options.items()]

    def without_align(name: str, *more: str) -> list[str]:
        words = settings(name, [])
        kept = [word for word in words[1::2] if "train.align" not in word]
        return [word for change in (*kept, *changes, *stage, *more) for word in ("--set", change)]

    one, _ = train(root, "one", 1, without_align("one"))
    two, _ = train(root, "two", 2, without_align("two", *SHARD))
    same(one, two)
    moved, _ = train(root, "moved", 2, without_align("moved", *SHARD), "the idle projector moves")
    assert one.apart(moved)[2] > 10 * WEIGHTS, "no step was without an image"


@pytest.mark.parametrize(
    ("kind", "where", "before", "after"),
    [
        ("full", "instruct:2", 2, 2),
        ("LoRA", "align:2", 2, 1),
        ("LoRA", "instruct:2", 1, 2),
        ("full", "instruct:2", 1, 2),
    ],
)
def test_killed_and_resumed(root: Path, kind: str, where: str, before: int, after: int) -> None:
    """As exactly by as many processes, and to the last digits by another number of them."""
    changes = [*KINDS[kind], *SHARD, "train.checkpoint_every=2"]
    whole, _ = train(root, "whole", before, settings("whole", changes))
    words = ["train", str(root / "tiny.yaml"), *settings("killed", changes)]
    shutil.rmtree(root / "runs" / "killed", ignore_errors=True)
    run_until_killed(before, root / "told" / "killed", words, where)
    run(after, root / "told" / "resumed", [*words, "--resume"])
    resumed = told(root, "killed")
    same(whole, resumed)
    if before == after:
        assert resumed.losses == whole.losses
        for name, weight in whole.weights.items():
            assert torch.equal(weight, resumed.weights[name])


def test_questions_are_asked_of_a_sharded_model(root: Path) -> None:
    """All processes answer them, each with its part of the weights, and as one process would."""
    asked = ["train.eval.questions=6", "train.eval.times=2"]
    answers = {}
    for name, count, more in (("one", 1, []), ("two", 2, SHARD)):
        train(root, name, count, settings(name, [*KINDS["LoRA"], *asked, *more]))
        log = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
        answers[name] = [row for row in map(json.loads, log) if "held_out" in row]
    assert len(answers["one"]) == 4
    for one, two in zip(answers["one"], answers["two"], strict=True):
        assert one["answers"] == two["answers"]
        assert one["held_out"] == two["held_out"]


def test_bfloat16(root: Path) -> None:
    """A frozen base in bfloat16 beside an adapter in float32 is gathered as it is."""
    changes = [*KINDS["LoRA"], "compute_dtype=bfloat16"]
    one, _ = train(root, "one", 1, settings("one", changes))
    two, _ = train(root, "two", 2, settings("two", [*changes, *SHARD]))
    losses, _, weights = one.apart(two)
    assert losses <= 5e-3
    assert weights <= 8e-3
    assert one.facts["plain_weights"] == two.facts["plain_weights"]
    for facts in two.facts["stages"].values():
        for check in facts["gradient_check"]:
            assert all(part["cosine"] > 0.98 for part in check["parts"])


def test_what_cannot_be_sharded_is_refused(root: Path) -> None:
    for changes, reason in (
        (["train.quantize=true"], "4-bit weights stay whole on each GPU"),
        (["train.lora.vision=true", "features.dtype=pixels"], "the others would wait for it"),
    ):
        every = ["train.shard=true", "train.quantize=false", *changes]
        with pytest.raises(RecipeError, match=reason):
            load_recipe(root / "tiny.yaml", tuple(every))


def test_one_process_says_that_it_shards_nothing(root: Path, verb: Any) -> None:
    from phisense.pipeline.progress import Notice
    from phisense.pipeline.train import train as run_training

    options = settings("note", [*KINDS["LoRA"], *SHARD], max_steps=2)
    said: list[Any] = []
    run_training(
        load_recipe(root / "tiny.yaml", tuple(options[1::2])), overwrite=True, on_event=said.append
    )
    assert [one.text for one in said if isinstance(one, Notice)].count(ONE_PROCESS) == 1
