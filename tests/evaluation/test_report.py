"""The report: what stands on its page, what it refuses, and what it says of models laid side by
side.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phisense import artifacts
from phisense.conversations import ImageFinder, Question
from phisense.errors import ArtifactError, UsageError
from phisense.evaluation import comparison
from phisense.evaluation.gallery import select_gallery
from phisense.evaluation.model_facts import ModelFacts
from phisense.evaluation.page import plots, render_page
from phisense.evaluation.published_results import PUBLISHED_RESULTS, PublishedResult
from phisense.evaluation.report import AttentionGrid, Report, read_report
from phisense.evaluation.report_writer import attention_maps
from phisense.evaluation.results import EvaluationReport
from phisense.evaluation.training_facts import LossCurve
from phisense.intervals import Interval, PairedDifference
from phisense.model.training_record import (
    MAX_POINTS,
    _seconds,
    downsample,
    strip_paths,
    training_record,
)
from phisense.pipeline.results import TrainingVerdict
from phisense.recipe import load_recipe

from . import made
from .made import FACTS, questions, report


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def good(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    gaze = {"q1": AttentionGrid(((0.1, 0.2), (0.3, 0.4)))}
    return report(
        tmp_path_factory.mktemp("good") / "good-heldout", pictures, "good", facts=FACTS, gaze=gaze
    )


@pytest.fixture(scope="module")
def worse(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(
        tmp_path_factory.mktemp("worse") / "worse-heldout", pictures, "worse", 0.5, facts=FACTS
    )


def page(one: Report) -> str:
    assert one.folder is not None
    return (one.folder / "report.html").read_text()


class Whole(HTMLParser):
    """Fails at a tag that is closed and was not opened, or the other way round; SVG included."""

    EMPTY = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_whole(html: str) -> None:
    """One file that asks nothing of anybody, and whose tags match."""
    for word in ("http://", "https://", "<script", "url(http", "@import", "<link", "<iframe"):
        assert word not in html
    assert not re.search(r"(?:src|href)='(?!data:|#)", html)
    parser = Whole()
    parser.feed(html)
    assert parser.open == []


def test_the_page_says_what_there_is_to_say(good: Report) -> None:
    html = page(good)
    check_whole(html)
    real = good.scores.real.accuracy
    assert "The model looks at the picture." in html
    assert f"{real.value:.3f}<span class='ci'>{real.low:.3f} to&nbsp;{real.high:.3f}</span>" in html
    assert good.scores.looks is not None
    over = good.scores.looks.over["blind"]
    assert f"(difference +{over.value:.3f}, interval +{over.low:.3f} to +{over.high:.3f})" in html
    for told in (
        "17.2 hours",
        "25,165,824",
        "captions.json",
        "558,128",
        "0.42 times its length",
        "control: layers reversed",
        "+4.00000",
    ):
        assert told in html
    for told in (
        "Wrong answers",
        "Right answers",
        "Descriptions",
        "Where it looked",
        "without the picture: ",
        "12 s",
        "heldout.jsonl, sha256",
    ):
        assert told in html
    assert html.count("<svg") == 3  # conditions, kinds, the curve
    assert "<td>0.250</td><td>0.125</td>" in html, "held out, and without the picture"
    assert html.count("data:image/jpeg;base64,") > 30


def test_tags_that_do_not_match_are_noticed() -> None:
    with pytest.raises(AssertionError):
        check_whole("<p><b>bold</p></b>")


@pytest.mark.slow
def test_a_blind_model_is_called_blind(pictures: Path, tmp_path: Path) -> None:
    html = page(report(tmp_path / "r", pictures, "blind", 0.3, blind=0.3))
    assert "The model is blind" in html
    assert "looks at the picture." not in html


def test_the_trainings_own_verdict_is_told(good: Report) -> None:
    """That of the evaluation is another: it asks more, and the merged model."""
    looked = (
        "<p class='verdict looks'><b>When it was trained it looked at its pictures.</b> 128"
        " held-out questions about 99 pictures were asked"
    )
    html = page(good)
    assert looked in html
    assert (
        "with the picture 0.250, without 0.125 (difference +0.125, interval +0.062 to +0.190), with"
        " another&#x27;s 0.140" in html
    )

    def told(looks: dict[str, Any] | None) -> str:
        facts = ModelFacts.from_dict({**good.facts.to_dict(), "looks": looks})
        return render_page("told", [replace(good, facts=facts)])

    blind = told(
        {
            **FACTS["looks"],
            "verdict": "blind",
            "difference_shuffled": {"value": 0.01, "low": -0.03, "high": 0.05},
        }
    )
    assert (
        "<p class='verdict blind'><b>When it was trained it was not shown to look at its"
        " pictures.</b>" in blind
    )
    assert "interval −0.030 to +0.050)" in blind
    few = told(TrainingVerdict(questions=12, pictures=4, real=0.5).to_dict())
    assert "<p class='verdict too-few'><b>When it was trained too few questions were asked" in few
    assert "12 held-out questions about 4 pictures were asked at its end.</p>" in few
    assert "When it was trained" not in told(None), "an older phisense did not say"
    for one in (html, blind, few):
        check_whole(one)


def test_one_condition_gives_no_verdict(pictures: Path, tmp_path: Path) -> None:
    html = page(report(tmp_path / "r", pictures, "one", conditions=("blind",)))
    assert "Asked under one condition only" in html
    assert "phisense wrote" in html  # and nothing is claimed of a training that nobody told of


def test_the_page_can_be_made_again_without_model_and_pictures(
    good: Report, verb: Any, tmp_path: Path
) -> None:
    shutil.copytree(str(good.folder), tmp_path / "moved")
    before = (tmp_path / "moved" / "report.html").read_text()
    (tmp_path / "moved" / "report.html").write_text("scribbled over")
    artifacts.write_manifest(tmp_path / "moved", kind="report", about={"title": good.title})
    result = verb("report", tmp_path / "moved")
    assert result["report"] == str(tmp_path / "moved" / "report.html")
    assert (tmp_path / "moved" / "report.html").read_text() == before
    assert read_report(tmp_path / "moved").title == good.title  # its manifest knows the new page


def test_what_models_and_files_say_cannot_become_part_of_the_page(
    pictures: Path, tmp_path: Path
) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=y> https://evil.example/ $x_{$ \u4f60"
    asked = [
        Question(f"<b>{i}</b>", f"{i:02}.png", bad, (bad, "a"), f"kind{i % 2}<i> $ http://k")
        for i in range(6)
    ]
    one = report(
        tmp_path / "r",
        pictures,
        "m'><script>",
        0.5,
        asked=asked,
        data=[{"name": bad}],
        engine=bad,
        prompt=bad,
    )
    check_whole(page(one))
    other = report(tmp_path / "s", pictures, "n</svg>", 0.5, asked=asked)
    check_whole(render_page(bad, [one, other]))


def test_what_a_task_puts_behind_every_question_is_shown_once(
    pictures: Path, tmp_path: Path
) -> None:
    words = "Answer with one word."
    asked = [
        Question(f"q{i}", f"{i:02}.png", f"Is it number {i}?\n{words}", ("Yes.",), "exists")
        for i in range(8)
    ]
    html = page(
        report(tmp_path / "r", pictures, "m", asked=asked, prompt=f"Is it number 0?\n{words}")
    )
    assert html.count(words) == 1
    assert "<p class='q'>Is it number 3?</p>" in html
    mixed = [*asked, Question("other", "00.png", "And this?", ("No.",), "exists")]
    assert page(report(tmp_path / "s", pictures, "m", asked=mixed)).count(words) >= 8


def test_the_same_questions_are_shown_of_every_model(good: Report, worse: Report) -> None:
    """Every kind in turn; a question that both got wrong is in both galleries' beginnings or in
    neither.
    """
    shown = select_gallery(good.predictions, max_shown=6)
    assert {p.kind for p in shown if p.right and p.kind != "description"} == {
        "exists",
        "colour",
        "place",
    }
    wrong = {
        name: [
            p.id for p in select_gallery(one.predictions, 99) if not p.right and p.kind == "exists"
        ]
        for name, one in (("g", good), ("w", worse))
    }
    common = set(wrong["g"]) & set(wrong["w"])
    assert [q for q in wrong["g"] if q in common] == [q for q in wrong["w"] if q in common]
    assert select_gallery(list(reversed(good.predictions)), 6) == shown


def test_two_models_side_by_side(good: Report, worse: Report, verb: Any, tmp_path: Path) -> None:
    result = verb("report", good.folder, worse.folder, "--out", tmp_path / "both.html")
    (task,) = result["tasks"]
    (difference,) = task["differences"]
    figure = difference["figures"]["accuracy"]
    one, other = (
        {p.id: p.right for p in r.main_predictions if p.kind != "description"}
        for r in (good, worse)
    )
    assert figure["value"] == pytest.approx((sum(other.values()) - sum(one.values())) / len(one))
    assert figure["high"] < 0
    assert difference["only_the_other_right"] == sum(one[q] and not other[q] for q in one)
    assert difference["only_it_right"] == sum(other[q] and not one[q] for q in one)
    html = (tmp_path / "both.html").read_text()
    check_whole(html)
    assert "good is better." in html
    assert f"Where they differ: {sum(one[q] != other[q] for q in one)} of 60 questions" in html
    assert "worse: <span class='wrong' aria-label='wrong'>✗</span> Maybe." in html


def test_a_paired_interval_is_narrower_than_what_it_is_made_of(good: Report, worse: Report) -> None:
    """By hand: the same draws of questions for both, and the percentiles of the differences."""
    found = comparison.report_difference(good, worse)
    assert found is not None
    one, other = (
        np.array([p.credit for p in r.main_predictions if p.kind != "description"])
        for r in (good, worse)
    )
    draws = np.random.default_rng(1).integers(len(one), size=(4000, len(one)))
    low, high = np.percentile((other - one)[draws].mean(1), [2.5, 97.5])
    assert found["accuracy"].low == pytest.approx(low, abs=0.03)
    assert found["accuracy"].high == pytest.approx(high, abs=0.03)
    assert comparison.report_difference(good, good) == {
        name: PairedDifference(0.0, 0.0, 0.0, False) for name in good.scores.real.metrics
    }


def test_units_of_several_questions_are_known_from_the_predictions(
    pictures: Path, tmp_path: Path
) -> None:
    """MME's pairs: their group is in the lines, and without it there is no interval."""
    pairs = [
        Question(
            f"q{i}",
            f"{i // 2 % 20:02}.png",
            f"Is it {i % 2}?",
            ("yes" if i % 2 else "no",),
            "existence",
            (),
            f"g{i // 2}",
        )
        for i in range(60)
    ]
    one, other = (
        report(tmp_path / name, pictures, name, right, asked=pairs, task="mme")
        for name, right in (("a", 0.95), ("b", 0.5))
    )
    found = comparison.report_difference(one, other)
    assert found is not None
    told = [r.scores.real.metrics[r.scores.headline].value for r in (one, other)]
    assert found[one.scores.headline].value == pytest.approx(told[1] - told[0])
    assert found[one.scores.headline].high < 0
    bare = [
        replace(r, predictions=[replace(p, group="") for p in r.predictions]) for r in (one, other)
    ]
    assert comparison.report_difference(*bare) is None


def test_no_interval_where_the_answers_do_not_give_the_figure(good: Report, worse: Report) -> None:
    """As of a task whose units are groups that the predictions do not tell."""
    scores: Any = worse.scores.to_dict()
    scores["real"]["figures"]["accuracy"]["value"] += 0.01
    changed = replace(worse, scores=EvaluationReport.from_dict(scores))
    assert comparison.report_difference(good, changed) is None
    assert "No paired interval" in render_page("both", [good, changed])


def test_reports_of_other_questions_are_not_subtracted(
    good: Report, pictures: Path, verb: Any, tmp_path: Path, capfd: Any
) -> None:
    fewer = report(tmp_path / "fewer", pictures, "fewer", asked=questions(pictures)[:40])
    result = verb("report", good.folder, fewer.folder, "--out", tmp_path / "both.html")
    assert [len(task["reports"]) for task in result["tasks"]] == [1, 1]
    assert result["notes"] == [
        "good and fewer answered different questions of own (60 and 40, 40 in common), so neither"
        " is subtracted from the other. Evaluate both on the same data with the same --limit."
    ]
    assert result["notes"][0] in (tmp_path / "both.html").read_text()
    assert "40 in common" in capfd.readouterr().err


def test_another_condition_is_not_subtracted(good: Report, pictures: Path, tmp_path: Path) -> None:
    blind = report(tmp_path / "blind", pictures, "other", conditions=("blind",))
    compared = comparison.group_reports([good, blind])
    grouped, notes = compared.groups, compared.notes
    assert [len(group.reports) for group in grouped] == [1, 1]
    assert notes == [
        "good was asked under the condition real and other under blind, so neither is subtracted"
        " from the other. Evaluate both with the same --condition."
    ]
    assert comparison.report_difference(good, blind) is None


def test_a_page_written_into_its_report_keeps_it_whole(
    good: Report, worse: Report, verb: Any, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(str(good.folder), own)
    verb("report", own, "--title", "Another title", "--out", own / "report.html")
    assert "Another title" in page(read_report(own))
    for out in (own / "scores.json", own / "more.html"):
        with pytest.raises(UsageError, match="--out lies in a report folder"):
            verb("report", own, "--out", out)
    with pytest.raises(UsageError, match="--out lies in a report folder"):
        verb("report", own, worse.folder, "--out", own / "report.html")
    read_report(own)


def test_several_sets_of_one_model_are_sections(
    good: Report, pictures: Path, tmp_path: Path
) -> None:
    more = report(
        tmp_path / "more",
        pictures,
        "good",
        asked=questions(pictures)[:40],
        data=[{"name": "digits.jsonl"}],
    )
    compared = comparison.group_reports([good, more])
    grouped, notes = compared.groups, compared.notes
    assert [group.title for group in grouped] == [
        "Your own questions: heldout.jsonl",
        "Your own questions: digits.jsonl",
    ]
    assert notes == []
    html = render_page("both", [good, more])
    check_whole(html)
    assert "<a href='#task-1'>" in html
    assert "id='task-1'" in html


def test_equal_names_are_told_apart(pictures: Path, tmp_path: Path) -> None:
    twice = [report(tmp_path / name, pictures, "same") for name in ("first", "second")]
    assert comparison.group_reports(twice).groups[0].names == ["same (first)", "same (second)"]


def test_each_refusal_is_a_sentence(good: Report, verb: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(
        ArtifactError,
        match=r"model is a model folder; wanted a report. Make one: phisense evaluate .*model",
    ):
        verb("report", tmp_path / "model")
    with pytest.raises(ArtifactError, match="nothing is not a finished report; got no such folder"):
        verb("report", tmp_path / "nothing")
    shutil.copytree(str(good.folder), tmp_path / "damaged")
    (tmp_path / "damaged" / "predictions.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match="predictions.jsonl is damaged"):
        verb("report", good.folder, tmp_path / "damaged", "--out", tmp_path / "x.html")
    with artifacts.staged_artifact(
        tmp_path / "old", kind="report", about={"title": "old"}
    ) as aside:
        artifacts.write_json(aside / "scores.json", {"real": {"accuracy": {"value": 0.5}}})
    with pytest.raises(
        ArtifactError,
        match="was written by an earlier phisense; got figures without intervals. Evaluate again",
    ):
        verb("report", tmp_path / "old")
    with pytest.raises(UsageError, match="a report is named twice"):
        verb("report", good.folder, good.folder)
    with pytest.raises(UsageError, match="--out is a folder"):
        verb("report", good.folder, "--out", tmp_path)
    assert not (tmp_path / "x.html").exists()


@pytest.mark.slow
def test_published_figures_stand_beside_and_are_called_so(
    good: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor = PublishedResult("accuracy", 0.859, "https://arxiv.org/abs/2310.03744", "another split")
    monkeypatch.setitem(PUBLISHED_RESULTS, "LLaVA-1.5-7B", {"own": anchor, "gqa": anchor})
    html = render_page("with anchors", [good])
    check_whole(html)
    assert "LLaVA-1.5-7B" in html
    assert "<td>0.859</td><td>arxiv.org/abs/2310.03744; another split</td>" in html
    assert html.count("<td>measured here</td>") == 1
    assert "Published, not measured here" in html
    monkeypatch.undo()
    assert "Beside published figures" not in render_page("without", [good])


def test_a_figure_that_there_is_not_is_a_dash(good: Report) -> None:
    scores: Any = good.scores.to_dict()
    scores["real"]["figures"]["yes_no_f1"] = {
        "value": None,
        "low": None,
        "high": None,
    }  # as JSON has NaN
    bare = replace(good, scores=EvaluationReport.from_dict(scores), facts=ModelFacts())
    html = render_page("nothing to divide by", [bare])
    assert "<td>–<span class='ci'>– to&nbsp;–</span></td>" in html
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    check_whole(
        plots.bar_plot(
            [("a", [nothing]), ("b", [Interval(0.5, 0.4, 0.6)])],
            ["one"],
            "accuracy",
        )
    )
    check_whole(plots.interval_plot([("a", [nothing])], ["one"], "accuracy"))


def test_plots_take_their_colours_from_the_page_and_figures_of_any_size() -> None:
    some = Interval(1510.7, 1480.0, 1540.0)
    svg = plots.bar_plot(
        [("perception $_", [some, None]), ("x" * 99, [some, some])], ["a<b", "c"], "score"
    )
    check_whole(svg)
    assert "1,511" in svg
    assert "var(--s0)" in svg
    assert not re.search("#0[0-9a-f]{5}", svg)
    beside_itself = Interval(1.0, 0.7, 1.0 - 1e-16)
    for draw in (plots.bar_plot, plots.interval_plot):
        check_whole(
            draw(
                [("all", [beside_itself]), ("none", [Interval(0.0, 1e-17, 0.3)])],
                ["one"],
                "accuracy",
            )
        )
    check_whole(plots.loss_curve(LossCurve((1,), (2.0,)), "align"))


def test_gazes_are_what_the_engine_tells(model: Path, world: Path) -> None:
    """And the page shows those of some right and some wrong answers."""
    from phisense.chat.torch_engine import TorchEngine
    from phisense.conversations import IMAGE, Message, read_questions
    from phisense.evaluation.scores import Prediction
    from phisense.model import load_model
    from phisense.vision.image_io import open_image

    built, images = load_model(model, "cpu"), ImageFinder([world / "data" / "images"])
    asked = read_questions(world / "data" / "heldout.jsonl")[:30]
    predictions = [
        Prediction(q.id, q.kind, q.image, q.image, q.text, q.answers, "real", "Red.", float(i % 2))
        for i, q in enumerate(asked)
    ]
    found = attention_maps(built, predictions, images, max_maps=3)
    assert len(found) == 3
    by = {p.id: p for p in predictions}
    assert {by[name].right for name in found} == {True, False}
    engine = TorchEngine(built, "practice")
    for name, grid in found.items():
        p = by[name]
        messages = [Message("user", f"{IMAGE}\n{p.question}"), Message("assistant", p.answer)]
        (told,) = engine.attention_map(
            messages, [engine.encode_image(open_image(images.path(str(p.image))))]
        )
        np.testing.assert_allclose(grid.weights, told.numpy(), atol=1e-5)
        assert (grid.rows, grid.columns) == told.shape
        assert np.sum(grid.weights) == pytest.approx(1.0, abs=1e-3)


def test_what_travels_with_a_model_names_no_place(tmp_path: Path) -> None:
    told = {
        "part": "/home/me/parts/phi",
        "id": "microsoft/Phi-3.5-mini-instruct",
        "w": "C:\\models\\phi",
        "up": ["../data/x.json", "data/y.json"],
    }
    assert strip_paths(told) == {
        "part": "phi",
        "id": "microsoft/Phi-3.5-mini-instruct",
        "w": "phi",
        "up": ["x.json", "data/y.json"],
    }
    assert strip_paths({"targets": r".*\.(qkv_proj|o_proj)", "rank": 3, "none": None}) == {
        "targets": r".*\.(qkv_proj|o_proj)", "rank": 3, "none": None,
    }  # fmt: skip
    recipe = load_recipe("practice", (f"root={tmp_path}", f"data.images={tmp_path}/pictures"))
    assert str(tmp_path) in str(recipe.model_dump(mode="json")), "the control"
    run = tmp_path / "run"
    run.mkdir()
    stage = {"samples": 7, "steps": 40, "data": [{"name": "align.json", "rows": 7, "weight": 1.0}]}
    artifacts.write_json(
        run / "train.json",
        {
            "stages": {"align": stage},
            "trainable": 5,
            "modules": ["a", "b"],
            "looks": FACTS["looks"],
        },
    )
    rows = [
        {
            "stage": "align",
            "step": i,
            "loss": 1 / (i + 1),
            "learning_rate": 0.1,
            "seconds": i % 500 + 1,
        }
        for i in range(1000)
    ]
    rows.append({"stage": "align", "step": 1000, "held_out": 0.5, "blind": 0.25, "seconds": 501})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = training_record(run, recipe).to_dict()
    assert str(tmp_path) not in json.dumps(found)
    assert "/src/" not in json.dumps(found)
    assert found["recipe"]["language"]["part"] == "practice/parts/language"
    assert found["data"] == [{"stage": "align", "name": "align.json", "rows": 7, "weight": 1.0}]
    assert found["seconds"] == 1001.0  # 500 before it was resumed, 501 after
    assert len(found["curves"]["align"]["step"]) == MAX_POINTS
    assert found["curves"]["align"]["held_out"] == {
        "step": [1000],
        "accuracy": [0.5],
        "blind": [0.25],
    }
    assert found["looks"] == FACTS["looks"]
    assert (found["trainable"], found["modules"]) == (5, 2)


@pytest.mark.parametrize(
    ("clock", "seconds"), [([], 0), ([5.0, 9.0], 9), ([5.0, 9.0, 2.0, 4.0], 13)]
)
def test_the_time_of_a_resumed_stage(clock: list[float], seconds: float) -> None:
    assert _seconds(clock) == seconds


@pytest.mark.parametrize("length", [0, 1, 299, 300, 301, 5000])
def test_thinning_keeps_the_ends(length: int) -> None:
    found = downsample(range(length))
    assert len(found) == min(length, MAX_POINTS)
    assert found == sorted(set(found))
    assert not length or (found[0], found[-1]) == (0, length - 1)


@pytest.mark.browser
def test_the_page_fits_a_phone_a_desk_and_paper(
    good: Report, worse: Report, tmp_path: Path
) -> None:
    """In a real browser: nothing sticks out sideways, no request leaves the file, and the plots
    follow into the dark.
    """
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "page.html").write_text(render_page("Two models", [good, worse]))
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        colours = set()
        for width, scheme, media in (
            (390, "light", "screen"),
            (1200, "dark", "screen"),
            (688, "light", "print"),
        ):
            seen = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            seen.emulate_media(media=media)
            asked: list[str] = []
            seen.on("request", lambda request, asked=asked: asked.append(request.url))
            seen.goto((tmp_path / "page.html").as_uri())
            assert seen.evaluate("document.documentElement.scrollWidth") == width
            assert [url for url in asked if not url.startswith("data:")] == [
                (tmp_path / "page.html").as_uri()
            ]
            assert seen.evaluate(
                "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
            )
            colours.add(
                seen.evaluate(
                    "getComputedStyle(document.querySelector('svg [style*=\"--s0\"]')).fill"
                )
            )
            if media == "print":
                wide = (
                    "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth >"
                    " one.clientWidth + 1).length"
                )
                assert seen.evaluate(wide) == 0, "a table is cut on paper"
        browser.close()
    assert len(colours) == 3


def test_the_page_and_the_scores_say_what_the_rule_does_not_apply_to(
    pictures: Path, tmp_path: Path
) -> None:
    """Half of the answers are "Maybe.", which is neither yes nor no."""
    unsure = made.report(tmp_path / "unsure", pictures, "unsure", right=0.5)
    [caveat] = unsure.scores.caveats
    assert caveat.code == "unreadable"
    assert caveat.count > 5
    assert f"{caveat.count} answers to yes/no questions are neither, and count as wrong." in page(
        unsure
    )
    certain = made.report(tmp_path / "certain", pictures, "certain", right=1.0)
    assert certain.scores.caveats == ()
    assert "count as wrong" not in page(certain)


def test_reports_of_models_that_think_are_compared(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are kept as they were given, thoughts and all, and read again as they were scored."""
    plain = [
        made.report(tmp_path / f"p{right}", pictures, f"p{right}", right=right)
        for right in (0.5, 0.9)
    ]
    said = made.said
    monkeypatch.setattr(
        made,
        "said",
        lambda *how: [f"<think>Yes. No. Red?</think>{answer}" for answer in said(*how)],
    )
    thinking = [
        made.report(tmp_path / f"t{right}", pictures, f"t{right}", right=right)
        for right in (0.5, 0.9)
    ]
    assert thinking[0].predictions[0].answer.startswith("<think>")
    assert [one.scores.real.metrics for one in thinking] == [
        one.scores.real.metrics for one in plain
    ]
    told = comparison.report_difference(*thinking)
    assert told is not None
    assert told == comparison.report_difference(*plain)
