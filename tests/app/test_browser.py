"""The page in a real headless Chromium, by keyboard and by a microphone that plays a recording."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from phisense.conversations import read_questions
from phisense.practice.spoken import spoken_questions

from .browsing import BROWSER_MARKS, CHROMIUM, open_page, shot, upload, wait_for_answer

pytestmark = BROWSER_MARKS


def test_picture_question_second_turn_and_clear(
    sync: Any, url: str, world: Path, model: Path, verb: Any
) -> None:
    picture = world / "data" / "images" / "heldout-00004.jpg"
    browser, page = open_page(sync, url)
    upload(page, picture)
    page.locator("#question textarea").fill("Describe the picture.")
    page.keyboard.press("Enter")
    assert (
        wait_for_answer(page)
        == verb("ask", model, "--image", picture, "-q", "Describe the picture.")["answer"]
    )
    page.locator("#question textarea").fill("How many things are there?")
    page.locator("#send").click()
    assert wait_for_answer(page, 2).rstrip(".").isdigit()
    shot(page, "text")
    page.locator("#clear").click()
    page.wait_for_function(
        "document.querySelectorAll('#conversation [data-testid=bot]').length === 0"
    )
    browser.close()


def test_an_example_and_its_ready_question(sync: Any, url: str) -> None:
    browser, page = open_page(sync, url)
    page.locator(
        "#examples button.thumbnail-item, #examples .thumbnail-lg, #examples .grid-container button"
    ).first.click()
    page.locator("#picture img").first.wait_for()
    page.locator("#ready button, #ready td, #ready .gallery-item").first.click()
    assert wait_for_answer(page)
    shot(page, "example")
    browser.close()


def test_a_spoken_question_through_a_fake_microphone(
    sync: Any, url: str, world: Path, model: Path, verb: Any, tmp_path: Path
) -> None:
    """A held-out voice, a held-out scene it can be asked about, and the right answer."""
    question, recording = spoken_pair(world, model, verb)
    flags = microphone(recording.path, tmp_path / "question.wav")
    browser, page = open_page(sync, url, flags=flags)
    for _ in range(
        3
        # Chromium plays the file when its microphone opens, and a busy machine may begin to record
        # after that
    ):
        upload(page, world / "data" / "images" / str(question.image))
        page.get_by_role("tab", name="Voice").click()
        heard = record(page)
        if bare(heard) == bare(recording.text):
            break
        browser.close()
        browser, page = open_page(sync, url, flags=flags)
    assert bare(heard) == bare(recording.text)
    assert wait_for_answer(page) == question.answers[0]
    shot(page, "voice")
    browser.close()


def microphone(recording: Path, wav: Path) -> tuple[str, ...]:
    """Chromium's flags for a microphone that plays a recording."""
    to_wav(recording, wav)
    return (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}%noloop",
    )


def bare(text: str) -> str:
    return text.lower().rstrip("?. ")


def record(page: Any) -> str:
    """What the page heard of five seconds; a sentence of its own if that was nothing."""
    page.locator("#sound button.record, #sound .record-button").first.click()
    page.wait_for_timeout(5000)
    page.locator("#sound button.stop-button, #sound .stop-button").first.click()
    page.wait_for_function("document.querySelector('#heard textarea').value.length > 0")
    return str(page.locator("#heard textarea").input_value())


def spoken_pair(world: Path, model: Path, verb: Any) -> tuple[Any, Any]:
    """A recorded question, and a scene about which the model answers it rightly when it is
    typed.
    """
    recordings = {r.text: r for r in spoken_questions() if r.heldout}
    for question in read_questions(world / "data" / "spoken.jsonl"):
        if question.text not in recordings or question.kind not in ("colour", "shape"):
            continue
        typed = verb(
            "ask",
            model,
            "--image",
            world / "data" / "images" / str(question.image),
            "-q",
            question.text,
        )
        if typed["answer"] == question.answers[0]:
            return question, recordings[question.text]
    raise AssertionError("no spoken question is answered rightly even when typed")


def to_wav(source: Path, target: Path) -> None:
    import wave

    from phisense.speech import read_audio

    sound = (read_audio(source) * 32767).astype("int16")
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound.tobytes())


def test_another_try_an_edit_and_undo(sync: Any, url: str, world: Path) -> None:
    browser, page = open_page(sync, url)
    upload(page, world / "data" / "images" / "heldout-00004.jpg")
    for count, question in enumerate(("How many things are there?", "Describe the picture."), 1):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
        wait_for_answer(page, count)
    page.get_by_label("Retry").last.click()
    page.wait_for_timeout(1500)
    assert wait_for_answer(page, 2)
    page.get_by_label("Edit").last.click()
    page.locator("#conversation textarea").last.fill("Is there a circle?")
    page.get_by_label("Submit").last.click()
    page.wait_for_timeout(1500)
    assert wait_for_answer(page, 2)
    assert "Is there a circle?" in page.locator("#conversation").inner_text()
    assert "Describe the picture." not in page.locator("#conversation").inner_text()
    page.get_by_label("Undo").last.click()
    page.wait_for_function(
        "document.querySelectorAll('#conversation [data-testid=bot]').length === 1"
    )
    assert page.locator("#question textarea").input_value() == "Is there a circle?"
    browser.close()


def test_where_it_looked_is_shown(sync: Any, url: str, world: Path) -> None:
    browser, page = open_page(sync, url)
    upload(page, world / "data" / "images" / "heldout-00004.jpg")
    page.locator("#question textarea").fill("How many things are there?")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    page.locator("#where").click()
    page.locator("#looked img").wait_for()
    assert "First word after" in page.locator("#timing").inner_text()
    shot(page, "where")
    browser.close()


def test_another_picture_stop_reload_download_and_dark(sync: Any, url: str, world: Path) -> None:
    browser, page = open_page(sync, url)
    for name in ("heldout-00004.jpg", "heldout-00005.jpg"):
        if page.locator("#picture img").count():
            page.locator(
                "#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']"
            ).first.click()
        upload(page, world / "data" / "images" / name)
        page.locator("#question textarea").fill("Describe the picture.")
        page.keyboard.press("Enter")
        wait_for_answer(page)
    # the new picture began anew
    assert page.locator("#conversation [data-testid=user]").count() == 1
    page.locator("#stop").click()
    with page.expect_download() as saved:
        page.locator("#download").click()
    text = Path(saved.value.path()).read_text()
    assert "**You:** Describe the picture." in text
    dark = "document.body.classList.contains('dark')"
    before = page.evaluate(dark)
    page.locator("#dark").click()
    page.wait_for_function(f"{dark} !== {str(before).lower()}")
    shot(page, "dark")
    page.reload()
    page.locator("#question textarea").wait_for()
    assert page.locator("#conversation [data-testid=bot]").count() == 0
    browser.close()


def test_two_people_at_once(sync: Any, url: str, world: Path) -> None:
    """Each sees their own, and nothing of the other."""
    browser, one = open_page(sync, url)
    other = browser.new_context().new_page()
    other.goto(url)
    other.locator("#question textarea").wait_for()
    upload(one, world / "data" / "images" / "heldout-00004.jpg")
    for page, question in ((one, "How many things are there?"), (other, "What comes after 3?")):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
    assert wait_for_answer(one)
    assert wait_for_answer(other)
    assert "comes after" not in one.locator("#conversation").inner_text()
    assert "How many" not in other.locator("#conversation").inner_text()
    browser.close()


def test_what_was_heard_can_be_changed_before_it_is_sent(
    sync: Any, url: str, tmp_path: Path
) -> None:
    recording = next(r for r in spoken_questions() if r.heldout)
    browser, page = open_page(
        sync, url, flags=microphone(recording.path, tmp_path / "question.wav")
    )
    page.get_by_role("tab", name="Voice").click()
    page.locator("#at-once input").uncheck()
    record(page)
    page.get_by_text("Heard English").wait_for()
    assert page.locator("#conversation [data-testid=bot]").count() == 0
    page.locator("#heard textarea").fill("What comes after 3?")
    page.locator("#send-heard").click()
    assert wait_for_answer(page)
    assert "What comes after 3?" in page.locator("#conversation").inner_text()
    browser.close()


TYPED = (
    "a<b and c>d",
    "1. one\n2. two\n- x\n+ y\n# no heading\n> no quote",
    "snake_case *stars* **bold** `code` ~~gone~~ &lt;b&gt; &amp; &copy;",
    "<script>alert(1)</script> <img src=x onerror=1> <!-- c -->",
    "x:\n    four spaces  and two\n\ntitle\n===\n\n| a | b |\n|---|---|\n```\ncode\n```",
    "![p](http://e.v/a.png) [l](http://x.y) www.x.com a@b.com \\*not\\*",
)


def test_questions_are_shown_as_they_were_typed(sync: Any) -> None:
    from phisense.app import build, launch

    from ..chat.test_session import Echo

    own = build(Echo())
    _, url, _ = launch(own, port=0, block=False)
    browser, page = open_page(sync, url)
    for text in TYPED:
        page.goto(url)
        page.locator("#question textarea").fill(text)
        page.locator("#send").click()
        user = page.locator("#conversation [data-testid=user]").first
        user.wait_for()
        assert user.inner_text().replace("\xa0", " ").strip() == text
        wait_for_answer(page)
    page.get_by_label("Undo").last.click()
    page.wait_for_function("document.querySelector('#question textarea').value.length > 0")
    assert page.locator("#question textarea").input_value() == TYPED[-1]
    shot(page, "typed")
    browser.close()
    own.close()


def test_a_broken_picture_is_a_sentence_and_no_turn(sync: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    browser, page = open_page(sync, url)
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.get_by_text("The upload is no picture that can be read").first.wait_for()
    page.locator("#question textarea").fill("What is it?")
    page.keyboard.press("Enter")
    page.wait_for_timeout(2000)
    assert page.locator("#conversation [data-testid=bot]").count() == 0
    assert "Traceback" not in page.inner_text("body")
    browser.close()


def test_on_a_phone(sync: Any, url: str) -> None:
    browser, page = open_page(sync, url, width=390)
    page.locator("#question textarea").fill("Hello.")
    page.keyboard.press("Enter")
    assert wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    shot(page, "phone")
    browser.close()


def test_the_browser_is_what_it_says() -> None:
    assert CHROMIUM is not None
    assert (
        "hromi"
        in subprocess.run(
            [CHROMIUM, "--version"], capture_output=True, text=True, check=True
        ).stdout
    )
