"""The report: what stands on its page, what it refuses, and what it says of models laid side by side."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phisense import artefact
from phisense.conversations import Pictures, Question
from phisense.errors import ArtefactError, UsageError
from phisense.evaluation import beside
from phisense.evaluation.anchors import ANCHORS
from phisense.evaluation.page import plots
from phisense.evaluation.report import Report, gazes, read, render
from phisense.evaluation.shown import gallery
from phisense.model.history import POINTS, _seconds, history, thinned, without_places
from phisense.recipe import load_recipe
from phisense.training.verdict import Looks

from .made import FACTS, questions, report


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def good(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    gaze = {"q1": {"rows": 2, "columns": 2, "weights": [[0.1, 0.2], [0.3, 0.4]]}}
    return report(tmp_path_factory.mktemp("good") / "good-heldout", pictures, "good", facts=FACTS, gaze=gaze)


@pytest.fixture(scope="module")
def worse(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(tmp_path_factory.mktemp("worse") / "worse-heldout", pictures, "worse", 0.5, facts=FACTS)


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
    real = good.scores["real"]["figures"]["accuracy"]
    assert "The model looks at the picture." in html
    assert f"{real['value']:.3f}<span class='ci'>{real['low']:.3f} to&nbsp;{real['high']:.3f}</span>" in html
    over = good.scores["looks"]["over"]["blind"]
    assert f"(difference +{over['value']:.3f}, interval +{over['low']:.3f} to +{over['high']:.3f})" in html
    for told in ("17.2 hours", "25,165,824", "captions.json", "558,128", "0.42 times its length", "control: layers reversed", "+4.00000"):
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


def test_a_blind_model_is_called_blind(pictures: Path, tmp_path: Path) -> None:
    html = page(report(tmp_path / "r", pictures, "blind", 0.3, blind=0.3))
    assert "The model is blind" in html
    assert "looks at the picture." not in html


def test_the_trainings_own_verdict_is_told(good: Report) -> None:
    """That of the evaluation is another: it asks more, and the merged model."""
    looked = (
        "<p class='verdict looks'><b>When it was trained it looked at its pictures.</b> 128 held-out questions about 99 pictures were asked"
    )
    html = page(good)
    assert looked in html
    assert "with the picture 0.250, without 0.125 (difference +0.125, interval +0.062 to +0.190), with another&#x27;s 0.140" in html

    def told(looks: dict[str, Any] | None) -> str:
        facts = {**good.facts, "looks": looks}
        return render("told", [Report(good.title, good.scores, good.predictions, facts, {}, good.folder, good.told)])

    blind = told({**FACTS["looks"], "verdict": "blind", "difference_shuffled": {"value": 0.01, "low": -0.03, "high": 0.05}})
    assert "<p class='verdict blind'><b>When it was trained it did not look at its pictures.</b>" in blind
    assert "interval −0.030 to +0.050)" in blind
    few = told(Looks(questions=12, pictures=4, real=0.5).as_dict())
    assert "<p class='verdict too-few'><b>When it was trained too few questions were asked" in few
    assert "12 held-out questions about 4 pictures were asked at its end.</p>" in few
    assert "When it was trained" not in told(None), "an older phisense did not say"
    for one in (html, blind, few):
        check_whole(one)


def test_one_condition_gives_no_verdict(pictures: Path, tmp_path: Path) -> None:
    html = page(report(tmp_path / "r", pictures, "one", conditions=("blind",)))
    assert "Asked under one condition only" in html
    assert "phisense wrote" in html  # and nothing is claimed of a training that nobody told of


def test_the_page_can_be_made_again_without_model_and_pictures(good: Report, verb: Any, tmp_path: Path) -> None:
    shutil.copytree(str(good.folder), tmp_path / "moved")
    before = (tmp_path / "moved" / "report.html").read_text()
    (tmp_path / "moved" / "report.html").write_text("scribbled over")
    artefact.write_manifest(tmp_path / "moved", kind="report", about={"title": good.title})
    result = verb("report", tmp_path / "moved")
    assert result["report"] == str(tmp_path / "moved" / "report.html")
    assert (tmp_path / "moved" / "report.html").read_text() == before
    assert read(tmp_path / "moved").title == good.title  # its manifest knows the new page


def test_what_models_and_files_say_cannot_become_part_of_the_page(pictures: Path, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=y> https://evil.example/ $x_{$ \u4f60"
    asked = [Question(f"<b>{i}</b>", f"{i:02}.png", bad, (bad, "a"), f"kind{i % 2}<i> $ http://k") for i in range(6)]
    one = report(tmp_path / "r", pictures, "m'><script>", 0.5, asked=asked, data=[{"name": bad}], engine=bad, prompt=bad)
    check_whole(page(one))
    other = report(tmp_path / "s", pictures, "n</svg>", 0.5, asked=asked)
    check_whole(render(bad, [one, other]))


def test_what_a_task_puts_behind_every_question_is_shown_once(pictures: Path, tmp_path: Path) -> None:
    words = "Answer with one word."
    asked = [Question(f"q{i}", f"{i:02}.png", f"Is it number {i}?\n{words}", ("Yes.",), "exists") for i in range(8)]
    html = page(report(tmp_path / "r", pictures, "m", asked=asked, prompt=f"Is it number 0?\n{words}"))
    assert html.count(words) == 1
    assert "<p class='q'>Is it number 3?</p>" in html
    mixed = [*asked, Question("other", "00.png", "And this?", ("No.",), "exists")]
    assert page(report(tmp_path / "s", pictures, "m", asked=mixed)).count(words) >= 8


def test_the_same_questions_are_shown_of_every_model(good: Report, worse: Report) -> None:
    """Every kind in turn; a question that both got wrong is in both galleries' beginnings or in neither."""
    shown = gallery(good.predictions, shown=6)
    assert {p.kind for p in shown if p.right and p.kind != "description"} == {"exists", "colour", "place"}
    wrong = {
        name: [p.id for p in gallery(one.predictions, 99) if not p.right and p.kind == "exists"]
        for name, one in (("g", good), ("w", worse))
    }
    common = set(wrong["g"]) & set(wrong["w"])
    assert [q for q in wrong["g"] if q in common] == [q for q in wrong["w"] if q in common]
    assert gallery(list(reversed(good.predictions)), 6) == shown


def test_two_models_side_by_side(good: Report, worse: Report, verb: Any, tmp_path: Path) -> None:
    result = verb("report", good.folder, worse.folder, "--out", tmp_path / "both.html")
    (task,) = result["tasks"]
    (difference,) = task["differences"]
    figure = difference["figures"]["accuracy"]
    one, other = ({p.id: p.right for p in r.main if p.kind != "description"} for r in (good, worse))
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
    found = beside.difference(good, worse)
    assert found is not None
    one, other = (np.array([p.credit for p in r.main if p.kind != "description"]) for r in (good, worse))
    draws = np.random.default_rng(1).integers(len(one), size=(4000, len(one)))
    low, high = np.percentile((other - one)[draws].mean(1), [2.5, 97.5])
    assert found["accuracy"]["low"] == pytest.approx(low, abs=0.03)
    assert found["accuracy"]["high"] == pytest.approx(high, abs=0.03)
    assert beside.difference(good, good) == {
        name: {"value": 0.0, "low": 0.0, "high": 0.0, "above_zero": False} for name in good.scores["real"]["figures"]
    }


def test_units_of_several_questions_are_known_from_the_predictions(pictures: Path, tmp_path: Path) -> None:
    """MME's pairs: their group is in the lines, and without it there is no interval."""
    pairs = [
        Question(f"q{i}", f"{i // 2 % 20:02}.png", f"Is it {i % 2}?", ("yes" if i % 2 else "no",), "existence", (), f"g{i // 2}")
        for i in range(60)
    ]
    one, other = (report(tmp_path / name, pictures, name, right, asked=pairs, task="mme") for name, right in (("a", 0.95), ("b", 0.5)))
    found = beside.difference(one, other)
    assert found is not None
    told = [r.scores["real"]["figures"][r.scores["headline"]]["value"] for r in (one, other)]
    assert found[one.scores["headline"]]["value"] == pytest.approx(told[1] - told[0])
    assert found[one.scores["headline"]]["high"] < 0
    bare = [Report(r.title, r.scores, r.predictions, {}, {}, r.folder, [{**line, "group": ""} for line in r.told]) for r in (one, other)]
    assert beside.difference(*bare) is None


def test_no_interval_where_the_answers_do_not_give_the_figure(good: Report, worse: Report) -> None:
    """As of a task whose units are groups that the predictions do not tell."""
    scores = json.loads(json.dumps(worse.scores))
    scores["real"]["figures"]["accuracy"]["value"] += 0.01
    changed = Report(worse.title, scores, worse.predictions, worse.facts, {}, worse.folder, worse.told)
    assert beside.difference(good, changed) is None
    assert "No paired interval" in render("both", [good, changed])


def test_reports_of_other_questions_are_not_subtracted(good: Report, pictures: Path, verb: Any, tmp_path: Path, capfd: Any) -> None:
    fewer = report(tmp_path / "fewer", pictures, "fewer", asked=questions(pictures)[:40])
    result = verb("report", good.folder, fewer.folder, "--out", tmp_path / "both.html")
    assert [len(task["reports"]) for task in result["tasks"]] == [1, 1]
    assert result["notes"] == [
        "good and fewer answered different questions of own (60 and 40, 40 in common), so neither is subtracted from the other. "
        "Evaluate both on the same data with the same --limit."
    ]
    assert result["notes"][0] in (tmp_path / "both.html").read_text()
    assert "40 in common" in capfd.readouterr().err


def test_another_condition_is_not_subtracted(good: Report, pictures: Path, tmp_path: Path) -> None:
    blind = report(tmp_path / "blind", pictures, "other", conditions=("blind",))
    grouped, notes = beside.groups([good, blind])
    assert [len(group.reports) for group in grouped] == [1, 1]
    assert notes == [
        "good was asked under the condition real and other under blind, so neither is subtracted from the other. "
        "Evaluate both with the same --image."
    ]
    assert beside.difference(good, blind) is None


def test_a_page_written_into_its_report_keeps_it_whole(good: Report, worse: Report, verb: Any, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(str(good.folder), own)
    verb("report", own, "--title", "Another title", "--out", own / "report.html")
    assert "Another title" in page(read(own))
    for out in (own / "scores.json", own / "more.html"):
        with pytest.raises(UsageError, match="--out lies in a report folder"):
            verb("report", own, "--out", out)
    with pytest.raises(UsageError, match="--out lies in a report folder"):
        verb("report", own, worse.folder, "--out", own / "report.html")
    read(own)


def test_several_sets_of_one_model_are_sections(good: Report, pictures: Path, tmp_path: Path) -> None:
    more = report(tmp_path / "more", pictures, "good", asked=questions(pictures)[:40], data=[{"name": "digits.jsonl"}])
    grouped, notes = beside.groups([good, more])
    assert [group.title for group in grouped] == ["Your own questions: heldout.jsonl", "Your own questions: digits.jsonl"]
    assert notes == []
    html = render("both", [good, more])
    check_whole(html)
    assert "<a href='#task-1'>" in html
    assert "id='task-1'" in html


def test_equal_names_are_told_apart(pictures: Path, tmp_path: Path) -> None:
    twice = [report(tmp_path / name, pictures, "same") for name in ("first", "second")]
    assert beside.groups(twice)[0][0].names == ["same (first)", "same (second)"]


def test_each_refusal_is_a_sentence(good: Report, verb: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"model is a model folder; wanted a report. Make one: phisense evaluate .*model"):
        verb("report", tmp_path / "model")
    with pytest.raises(ArtefactError, match="nothing is not a finished report; got no such folder"):
        verb("report", tmp_path / "nothing")
    shutil.copytree(str(good.folder), tmp_path / "damaged")
    (tmp_path / "damaged" / "predictions.jsonl").write_text("{}")
    with pytest.raises(ArtefactError, match="predictions.jsonl is damaged"):
        verb("report", good.folder, tmp_path / "damaged", "--out", tmp_path / "x.html")
    with artefact.staged(tmp_path / "old", kind="report", about={"title": "old"}) as aside:
        artefact.write_json(aside / "scores.json", {"real": {"accuracy": {"value": 0.5}}})
    with pytest.raises(ArtefactError, match="was written by an earlier phisense; got figures without intervals. Evaluate again"):
        verb("report", tmp_path / "old")
    with pytest.raises(UsageError, match="a report is named twice"):
        verb("report", good.folder, good.folder)
    with pytest.raises(UsageError, match="--out is a folder"):
        verb("report", good.folder, "--out", tmp_path)
    assert not (tmp_path / "x.html").exists()


def test_published_figures_stand_beside_and_are_called_so(good: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = {"figure": "accuracy", "value": 0.859, "source": "https://arxiv.org/abs/2310.03744", "note": "another split"}
    monkeypatch.setitem(ANCHORS, "LLaVA-1.5-7B", {"own": anchor, "gqa": anchor})
    html = render("with anchors", [good])
    check_whole(html)
    assert "LLaVA-1.5-7B" in html
    assert "<td>0.859</td><td>arxiv.org/abs/2310.03744; another split</td>" in html
    assert html.count("<td>measured here</td>") == 1
    assert "Published, not measured here" in html
    monkeypatch.undo()
    assert "Beside published figures" not in render("without", [good])


def test_a_figure_that_there_is_not_is_a_dash(good: Report) -> None:
    scores = json.loads(json.dumps(good.scores))
    scores["real"]["figures"]["yes_no_f1"] = {"value": None, "low": None, "high": None}  # as JSON has NaN
    html = render("nothing to divide by", [Report(good.title, scores, good.predictions, {}, {}, good.folder, good.told)])
    assert "<td>–<span class='ci'>– to&nbsp;–</span></td>" in html
    nothing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    check_whole(plots.bars([("a", [nothing]), ("b", [{"value": 0.5, "low": 0.4, "high": 0.6}])], ["one"], "accuracy"))
    check_whole(plots.marks([("a", [nothing])], ["one"], "accuracy"))


def test_plots_take_their_colours_from_the_page_and_figures_of_any_size() -> None:
    some = {"value": 1510.7, "low": 1480.0, "high": 1540.0}
    svg = plots.bars([("perception $_", [some, None]), ("x" * 99, [some, some])], ["a<b", "c"], "score")
    check_whole(svg)
    assert "1,511" in svg
    assert "var(--s0)" in svg
    assert not re.search("#0[0-9a-f]{5}", svg)
    beside_itself = {"value": 1.0, "low": 0.7, "high": 1.0 - 1e-16}
    for draw in (plots.bars, plots.marks):
        check_whole(draw([("all", [beside_itself]), ("none", [{"value": 0.0, "low": 1e-17, "high": 0.3}])], ["one"], "accuracy"))
    check_whole(plots.curve({"step": [1], "loss": [2.0]}, "align"))


def test_gazes_are_what_the_engine_tells(model: Path, world: Path) -> None:
    """And the page shows those of some right and some wrong answers."""
    from phisense.chat.torch_engine import TorchEngine
    from phisense.conversations import IMAGE, Message, read_questions
    from phisense.evaluation.scores import Prediction
    from phisense.model import load_model
    from phisense.vision.pictures import open_picture

    built, images = load_model(model, "cpu"), Pictures([world / "data" / "images"])
    asked = read_questions(world / "data" / "heldout.jsonl")[:30]
    predictions = [Prediction(q.id, q.kind, q.image, q.image, q.text, q.answers, "real", "Red.", float(i % 2)) for i, q in enumerate(asked)]
    found = gazes(built, predictions, images, most=3)
    assert len(found) == 3
    by = {p.id: p for p in predictions}
    assert {by[name].right for name in found} == {True, False}
    engine = TorchEngine(built, "practice")
    for name, grid in found.items():
        p = by[name]
        messages = [Message("user", f"{IMAGE}\n{p.question}"), Message("assistant", p.answer)]
        told = engine.gaze(messages, [engine.see(open_picture(images.path(str(p.image))))])
        np.testing.assert_allclose(grid["weights"], told.numpy(), atol=1e-5)
        assert (grid["rows"], grid["columns"]) == told.shape
        assert np.sum(grid["weights"]) == pytest.approx(1.0, abs=1e-3)


def test_what_travels_with_a_model_names_no_place(tmp_path: Path) -> None:
    told = {
        "part": "/home/me/parts/phi",
        "id": "microsoft/Phi-3.5-mini-instruct",
        "w": "C:\\models\\phi",
        "up": ["../data/x.json", "data/y.json"],
    }
    assert without_places(told) == {"part": "phi", "id": "microsoft/Phi-3.5-mini-instruct", "w": "phi", "up": ["x.json", "data/y.json"]}
    assert without_places({"targets": r".*\.(qkv_proj|o_proj)", "rank": 3, "none": None}) == {
        "targets": r".*\.(qkv_proj|o_proj)", "rank": 3, "none": None,
    }  # fmt: skip
    recipe = load_recipe("practice", (f"root={tmp_path}", f"data.images={tmp_path}/pictures"))
    assert str(tmp_path) in str(recipe.model_dump(mode="json")), "the control"
    run = tmp_path / "run"
    run.mkdir()
    stage = {"samples": 7, "steps": 40, "data": [{"name": "align.json", "rows": 7, "weight": 1.0}]}
    artefact.write_json(run / "train.json", {"stages": {"align": stage}, "trainable": 5, "modules": ["a", "b"], "looks": FACTS["looks"]})
    rows = [{"stage": "align", "step": i, "loss": 1 / (i + 1), "learning_rate": 0.1, "seconds": i % 500 + 1} for i in range(1000)]
    rows.append({"stage": "align", "step": 1000, "held_out": 0.5, "blind": 0.25, "seconds": 501})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = history(run, recipe)
    assert str(tmp_path) not in json.dumps(found)
    assert "/src/" not in json.dumps(found)
    assert found["recipe"]["language"]["part"] == "practice/parts/language"
    assert found["data"] == [{"stage": "align", "name": "align.json", "rows": 7, "weight": 1.0}]
    assert found["seconds"] == 1001.0  # 500 before it was resumed, 501 after
    assert len(found["curves"]["align"]["step"]) == POINTS
    assert found["curves"]["align"]["held_out"] == {"step": [1000], "accuracy": [0.5], "blind": [0.25]}
    assert found["looks"] == FACTS["looks"]
    assert (found["trainable"], found["modules"]) == (5, 2)


@pytest.mark.parametrize(("clock", "seconds"), [([], 0), ([5.0, 9.0], 9), ([5.0, 9.0, 2.0, 4.0], 13)])
def test_the_time_of_a_resumed_stage(clock: list[float], seconds: float) -> None:
    assert _seconds(clock) == seconds


@pytest.mark.parametrize("length", [0, 1, 299, 300, 301, 5000])
def test_thinning_keeps_the_ends(length: int) -> None:
    found = thinned(range(length))
    assert len(found) == min(length, POINTS)
    assert found == sorted(set(found))
    assert not length or (found[0], found[-1]) == (0, length - 1)


@pytest.mark.browser
def test_the_page_fits_a_phone_a_desk_and_paper(good: Report, worse: Report, tmp_path: Path) -> None:
    """In a real browser: nothing sticks out sideways, no request leaves the file, and the plots follow into the dark."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "page.html").write_text(render("Two models", [good, worse]))
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        colours = set()
        for width, scheme, media in ((390, "light", "screen"), (1200, "dark", "screen"), (688, "light", "print")):
            seen = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            seen.emulate_media(media=media)
            asked: list[str] = []
            seen.on("request", lambda request, asked=asked: asked.append(request.url))
            seen.goto((tmp_path / "page.html").as_uri())
            assert seen.evaluate("document.documentElement.scrollWidth") == width
            assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
            assert seen.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
            colours.add(seen.evaluate("getComputedStyle(document.querySelector('svg [style*=\"--s0\"]')).fill"))
            if media == "print":
                wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1).length"
                assert seen.evaluate(wide) == 0, "a table is cut on paper"
        browser.close()
    assert len(colours) == 3
