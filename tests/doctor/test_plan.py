"""Plans from configurations alone, what is advised, and what is said on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phisense.doctor import find_devices, make_plan
from phisense.doctor.advice import advise, candidate_changes
from phisense.doctor.devices import parse_memory
from phisense.doctor.memory import nf4_bytes
from phisense.doctor.shapes import read_shapes
from phisense.errors import PartError, UsageError
from phisense.recipe import load_recipe

REAL = "phi3.5-clip-l336"


def test_known_shapes_are_those_of_phi_and_clip() -> None:
    s = read_shapes(load_recipe(REAL))
    assert s.language == 3_821_079_552  # the model card's 3.8 billion
    assert s.lora(16) == 25_165_824
    assert (s.image_tokens, s.width, s.hidden) == (576, 1024, 3072)
    assert all("known shapes" in note for note in s.notes)
    assert len(s.notes) == 2
    assert read_shapes(load_recipe("phi3.5-clip-l336-16gb")).image_tokens == 144


def test_nf4_takes_the_published_bits() -> None:
    """4.127 bits a weight (Dettmers et al. 2023, section 3)."""
    assert nf4_bytes(3072 * 8192) * 8 / (3072 * 8192) == pytest.approx(4.127, abs=0.001)


def test_an_unknown_part_has_no_plan() -> None:
    recipe = load_recipe(REAL, ("language.part=somebody/something",))
    with pytest.raises(PartError, match="nothing can be planned for the part somebody/something"):
        read_shapes(recipe)


def test_a_part_that_is_on_disk_needs_no_weights(tmp_path: Path, parts: tuple[str, str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((Path(parts[0]) / "config.json").read_bytes())
    s = read_shapes(
        load_recipe(REAL, (f"language.part={bare}", f"vision.part={parts[1]}", "projector.pool=2"))
    )
    assert (s.hidden, s.layers, s.image_tokens, s.notes) == (32, 2, 4, ())


@pytest.mark.slow
def test_memory_grows_with_what_costs_memory() -> None:
    device = find_devices("A100-80")[0]

    def peak(*more: str) -> float:
        steps = make_plan(load_recipe(REAL, more), device).steps
        return next(step.peak.total for step in steps if step.peak.step == "instruct")

    usual = peak()
    assert peak("train.instruct.micro_batch_size=8") > usual * 1.3
    assert peak("train.instruct.max_length=1024") < usual
    assert peak("train.quantize=false") > usual + 5e9
    assert peak("train.gradient_checkpointing=false") > usual * 2
    assert peak("train.lora.rank=64") < usual


def test_a_sharded_model_is_planned_for_each_process() -> None:
    full = ("train.lora=null", "train.quantize=false", "train.instruct.micro_batch_size=1")

    def plan(
        gpu: str, processes: int, *more: str
    ) -> tuple[dict[str, float], bool, tuple[str, ...]]:
        device = replace(find_devices(gpu)[0], processes=processes)
        made = make_plan(load_recipe(REAL, (*full, *more)), device)
        step = next(step for step in made.steps if step.peak.step == "instruct")
        return step.peak.terms, step.fits, made.notes

    one, fits, notes = plan("A100-80", 1, "train.shard=true")
    assert not fits
    assert plan("A100-80", 8) == (one, False, notes), "without train.shard it is not divided"
    eight, fits, more = plan("A100-80", 8, "train.shard=true")
    assert fits
    assert len(more) == len(notes) + 1
    for name in ("weights", "optimizer"):
        assert eight[name] == one[name] / 8
    # a decoder layer of 113 million weights, or the embeddings of 98 million, in float32, twice
    assert eight.get("gathered", 1e9) > 2 * 4 * 113e6


def test_advice_is_the_cheapest_change_that_fits() -> None:
    recipe = load_recipe(
        REAL, ("train.gradient_checkpointing=false", "train.instruct.micro_batch_size=2")
    )
    device = find_devices(memory="24GB")[0]
    made = make_plan(recipe, device)
    step = next(step for step in made.steps if step.peak.step == "instruct")
    assert not step.fits
    assert [change.fits for change in step.tried] == [False] * (len(step.tried) - 1) + [True]
    taken = step.tried[-1]
    assert taken.keys in str(step.advice)
    again = make_plan(
        load_recipe(
            REAL,
            ("train.gradient_checkpointing=false", "train.instruct.micro_batch_size=2", taken.keys),
        ),
        device,
    )
    fixed = next(step for step in again.steps if step.peak.step == "instruct")
    assert fixed.fits
    assert fixed.peak.total == pytest.approx(taken.peak)


def test_advice_says_when_nothing_helps() -> None:
    made = make_plan(load_recipe(REAL), find_devices(memory="2GB")[0])
    for step in made.steps:
        assert not step.fits
    instruct = next(step for step in made.steps if step.peak.step == "instruct")
    assert instruct.advice == "no single change makes it fit"
    assert instruct.tried
    assert not any(change.fits for change in instruct.tried)


def test_changes_come_in_the_order_of_their_cost() -> None:
    recipe = load_recipe(REAL, ("train.gradient_checkpointing=false", "train.quantize=false"))
    keys = [keys.split("=")[0] for keys, _, _ in candidate_changes(recipe, "instruct")]
    order = list(dict.fromkeys(keys))
    assert order == [
        "train.instruct.micro_batch_size",
        "train.gradient_checkpointing",
        "train.quantize",
        "projector.pool",
        "train.instruct.max_length",
        "train.lora.rank",
    ]
    best, tried = advise(
        recipe, "instruct", 10.0, lambda changed: 5.0 if changed.train.quantize else 20.0
    )
    assert best is not None
    assert best.keys == "train.quantize=true"
    assert sum(change.fits for change in tried) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16e9), ("16", 16e9), ("1.5 GiB", 1.5 * 2**30), ("512mb", 512e6)]
)
def test_amounts_of_memory(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "much", "-3GB", "16TBs"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of memory"):
        parse_memory(text)


def test_an_unknown_gpu_lists_the_known() -> None:
    with pytest.raises(UsageError, match="unknown --gpu; got GTX-9; wanted T4, .*H100"):
        find_devices("GTX-9")
    assert find_devices("rtx 4090")[0].memory == 24e9
    assert find_devices("T4")[0].dtype == "float32"  # it does not multiply in bfloat16


def test_time_is_operations_over_rate() -> None:
    """Four passes of the frozen weights cost 8 operations a weight and token, less what is not a
    matrix; within a tenth of that rule.
    """
    from phisense.doctor.duration import training_flops
    from phisense.doctor.lengths import Lengths

    recipe = load_recipe(REAL, ("train.gradient_checkpointing=false",))
    s = read_shapes(recipe)
    flops = training_flops(
        s,
        recipe,
        "align",
        find_devices("A100-80")[0],
        Lengths(1000, 1000, 1000, None, None, "", 1000**2, 0),
    )
    assert flops == pytest.approx(4 * (s.matrix_weights + s.output) * 1000, rel=0.1)


def test_data_at_hand_is_counted(tmp_path: Path, parts: tuple[str, str]) -> None:
    rows = [
        {
            "id": str(i),
            "image": f"{i // 2}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "Red. " * (80 if i == 3 else 1)},
            ],
        }
        for i in range(6)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe = load_recipe(
        "practice",
        (
            f"root={tmp_path}",
            f"language.part={parts[0]}",
            f"vision.part={parts[1]}",
            "data.instruct=[rows.json]",
        ),
    )
    by_themselves = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"share_pictures": False})}
    )
    step = next(
        step
        for step in make_plan(recipe, find_devices("T4")[0]).steps
        if step.peak.step == "instruct"
    )
    assert step.lengths is not None
    assert (step.lengths.rows, step.lengths.conversations) == (3, 6)
    assert (step.lengths.rows_of(4), step.lengths.rows_of(1)) == (2, 1)
    assert step.lengths.longest > 2 * step.lengths.mean > 32
    assert step.lengths.longest > step.lengths.supervised > 80
    assert (step.lengths.pictures, step.lengths.mean_pictures) == (1, 1.0)
    apart = next(
        made
        for made in make_plan(by_themselves, find_devices("T4")[0]).steps
        if made.peak.step == "instruct"
    )
    assert apart.lengths is not None
    assert apart.lengths.rows == apart.lengths.conversations == 6
    assert step.seconds is not None


@pytest.mark.parametrize("share", [True, False])
def test_several_pictures_a_row_are_planned_for(
    tmp_path: Path, parts: tuple[str, str], share: bool
) -> None:
    """More pictures take more memory and more time: the most of a row, and the mean."""

    def planned(counts: tuple[int, ...], folder: Path) -> Any:
        folder.mkdir()
        rows = [
            {
                "id": str(i),
                "images": [f"{i}-{j}.jpg" for j in range(count)],
                "conversations": [
                    {"from": "human", "value": "<image>" * count + "What?"},
                    {"from": "gpt", "value": "Red."},
                ],
            }
            for i, count in enumerate(counts)
        ]
        (folder / "rows.json").write_text(json.dumps(rows))
        recipe = load_recipe(
            "practice",
            (
                f"root={folder}",
                f"language.part={parts[0]}",
                f"vision.part={parts[1]}",
                "features.dtype=pixels",
                "train.eval.questions=0",
                f"train.share_pictures={str(share).lower()}",
                "data.instruct=[rows.json]",
            ),
        )
        steps = make_plan(recipe, find_devices("T4")[0]).steps
        return next(step for step in steps if step.peak.step == "instruct")

    one, several = (
        planned(counts, tmp_path / name)
        for name, counts in (("one", (1, 1, 1, 1)), ("several", (0, 1, 4, 3)))
    )
    assert (one.lengths.pictures, one.lengths.mean_pictures) == (1, 1.0)
    assert (several.lengths.pictures, several.lengths.mean_pictures) == (4, 2.0)
    assert several.lengths.longest > 4 * 16 > one.lengths.longest
    assert several.peak.total > one.peak.total
    assert several.seconds > one.seconds


def test_the_verb_speaks_json_and_says_what_fits(
    verb: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from phisense.errors import PhisenseError

    # the parts and the data of the real recipe
    with pytest.raises(PhisenseError, match="something is missing"):
        verb("doctor", REAL, "--set", f"root={tmp_path}", "--device-memory", "16GB", "--json")
    said = json.loads(capsys.readouterr().out)
    assert {"findings", "plans", "no_plan"} == said.keys()
    steps = {step["step"]: step for step in said["plans"][0]["steps"]}
    assert list(steps) == ["align", "instruct", "merge", "evaluate", "chat"]
    assert all(
        step["bytes"] == pytest.approx(sum(step["terms"].values()), abs=20)
        for step in steps.values()
    )
    assert steps["merge"]["fits"] is False
    assert "--device cpu" in steps["merge"]["advice"]
    with pytest.raises(UsageError, match="there is nothing to plan"):
        verb("doctor", "--gpu", "T4")
