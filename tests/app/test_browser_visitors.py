"""Two visitors at once, each in a profile of their own: each sees only what is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .browsing import BROWSER_MARKS, new_visitor, open_settings, upload
from .conftest import ToyPage, make_picture

pytestmark = BROWSER_MARKS

STATUS = "async (address) => (await fetch(address)).status"
SCREENS = ({"width": 1280, "height": 900}, {"width": 390, "height": 844})


def ask_at_once(toy: ToyPage, pages: list[Any], questions: list[str], messages: int) -> None:
    """All are answered at the same time: none is complete before each has its first word."""
    toy.engine.go.clear()
    for page, question in zip(pages, questions, strict=True):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
    for page in pages:
        page.get_by_text(f"{messages} messages,").last.wait_for()
    toy.engine.go.set()
    for page, question in zip(pages, questions, strict=True):
        page.locator("#conversation [data-testid=bot]", has_text=f": {question}").wait_for()


def test_two_visitors_at_once_see_only_their_own(
    browser: Any, toy: ToyPage, tmp_path: Path
) -> None:
    pages = [new_visitor(browser, toy.url, viewport=screen) for screen in SCREENS]
    widths = (210, 310)
    for page, width in zip(pages, widths, strict=True):
        upload(page, make_picture(tmp_path / f"{width}.png", width))
    open_settings(pages[0])
    pages[0].locator("#keep input").check()
    questions = [["Red one?", "Blue one?"], ["Red two?", "Blue two?"]]
    for turn, asked in enumerate(questions):
        ask_at_once(toy, pages, asked, 2 * turn + 1)
    for number, page in enumerate(pages):
        said = page.locator("#conversation").inner_text()
        assert all(turn[number] in said and turn[1 - number] not in said for turn in questions)
        assert f"({widths[number]}, 80)" in said
        assert f"({widths[1 - number]}, 80)" not in said
        page.locator("#where").click()
        page.locator("#looked img").wait_for()
    shown = [
        [
            page.locator(f"{place} img").first.get_attribute("src")
            for place in ("#picture", "#looked")
        ]
        for page in pages
    ]
    for number, page in enumerate(pages):
        assert [page.evaluate(STATUS, one) for one in shown[number]] == [200, 200]
        assert [page.evaluate(STATUS, one) for one in shown[1 - number]] == [404, 404]
    pages[0].wait_for_function("localStorage['phisense.kept']?.includes('Red two?')")
    assert "Blue" not in pages[0].evaluate("localStorage['phisense.kept']")
    assert pages[1].evaluate("localStorage.length") == 0
    for page in pages:
        page.reload()
        page.locator("#question textarea").wait_for()
    pages[0].get_by_text("Kept by this browser").wait_for()
    assert "Blue" not in pages[0].locator("#conversation").inner_text()
    assert pages[1].locator("#conversation [data-testid=bot]").count() == 0
    # and one goes on while the other begins anew
    ask_at_once(toy, pages[:1], ["Red three?"], 5)
    ask_at_once(toy, pages[1:], ["Blue three?"], 1)
