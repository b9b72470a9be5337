"""A conversation in the visitor's own browser: kept if it is asked for, restored, deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .browsing import BROWSER_MARKS, ask, new_visitor, open_settings, shot, upload, visit
from .conftest import ToyPage

pytestmark = BROWSER_MARKS

STORED = """async () => [
  ...Object.entries(localStorage).map(([key, value]) => key + value),
  ...Object.entries(sessionStorage).map(([key, value]) => key + value),
  ...(await indexedDB.databases()).map((one) => one.name),
  ...(await caches.keys()),
]"""


def keep(page: Any) -> None:
    open_settings(page)
    page.locator("#keep input").check()
    wait_for_storage(page, "localStorage['phisense.keep'] === '1'")


def wait_for_storage(page: Any, condition: str) -> None:
    page.wait_for_function(condition)


def reload(page: Any) -> None:
    page.reload()
    page.locator("#question textarea").wait_for()


def said(page: Any) -> list[str]:
    found: list[str] = page.locator(
        "#conversation [data-testid=user], #conversation [data-testid=bot]"
    ).all_inner_texts()
    return [text.strip() for text in found]


def test_nothing_is_kept_unless_it_is_asked_for(browser: Any, toy: ToyPage) -> None:
    """The control asks for it, and something is found."""
    page = new_visitor(browser, toy.url)
    upload(page, toy.picture)
    ask(page, "What is it?")
    page.wait_for_timeout(1000)
    assert page.evaluate(STORED) == []
    reload(page)
    page.wait_for_timeout(1000)
    assert said(page) == []
    ask(page, "What is it?")
    keep(page)
    wait_for_storage(page, "'phisense.kept' in localStorage")
    assert any("What is it?" in one for one in page.evaluate(STORED))


@pytest.mark.parametrize("shown", ["nothing", "upload", "example"])
def test_a_kept_conversation_is_there_after_a_reload_and_goes_on(
    browser: Any, toy: ToyPage, shown: str
) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    width = {"nothing": None, "upload": 200, "example": 102}[shown]
    if shown == "upload":
        upload(page, toy.picture)
    elif shown == "example":
        page.locator("#examples button.thumbnail-item").nth(2).click()
        page.locator("#picture img").first.wait_for()
        page.wait_for_timeout(500)
    ask(page, "Is it a <b>?")
    ask(page, "And now?")
    before = said(page)
    wait_for_storage(page, "localStorage['phisense.kept']?.includes('And now?')")
    reload(page)
    page.get_by_text("Kept by this browser; go on where you were.").wait_for()
    assert before[::2] == ["Is it a <b>?", "And now?"]
    assert said(page)[:4] == before
    assert page.locator("#picture img").count() == (width is not None)
    shot(page, f"kept-{shown}")
    answer = ask(page, "What else?")
    pictures = [] if width is None else [(width, 80)]
    assert answer == f"5 messages, pictures {pictures}: What else?"
    given = toy.engine.given[-1]
    assert [m.text.split("\n")[-1] for m in given][::2] == [
        "Is it a <b>?",
        "And now?",
        "What else?",
    ]
    # what went on is kept as well
    wait_for_storage(page, "localStorage['phisense.kept']?.includes('What else?')")


def test_another_profile_sees_nothing_of_it(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    ask(page, "What is it?")
    wait_for_storage(page, "'phisense.kept' in localStorage")
    other = new_visitor(browser, toy.url)
    other.wait_for_timeout(1500)
    assert said(other) == []
    assert other.evaluate(STORED) == []
    open_settings(other)
    assert not other.locator("#keep input").is_checked()
    reload(page)  # the control: the same profile sees it
    page.get_by_text("Kept by this browser").wait_for()


@pytest.mark.parametrize("how", ["delete", "switch"])
def test_deleting_empties_it_at_once(browser: Any, toy: ToyPage, how: str) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    ask(page, "What is it?")
    wait_for_storage(page, "'phisense.kept' in localStorage")
    if how == "delete":
        page.locator("#delete").click()
    else:
        page.locator("#keep input").uncheck()
    wait_for_storage(page, "localStorage.length === 0")
    page.wait_for_function("!document.querySelector('#keep input').checked")
    ask(page, "And now?")  # nor is what follows kept
    page.wait_for_timeout(500)
    assert page.evaluate(STORED) == []
    reload(page)
    page.wait_for_timeout(1000)
    assert said(page) == []


def test_what_is_cleared_or_taken_back_is_kept_no_longer(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    for question in ("First?", "Second?"):
        ask(page, question)
    wait_for_storage(page, "localStorage['phisense.kept']?.includes('Second?')")
    page.get_by_label("Undo").last.click()
    wait_for_storage(page, "!localStorage['phisense.kept'].includes('Second?')")
    assert "First?" in page.evaluate("localStorage['phisense.kept']")
    page.locator("#clear").click()
    wait_for_storage(page, "!('phisense.kept' in localStorage)")
    assert page.evaluate("localStorage['phisense.keep']") == "1"


def test_a_picture_that_is_refused_leaves_the_words(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    upload(page, toy.picture)
    ask(page, "What is it?")
    wait_for_storage(page, "JSON.parse(localStorage['phisense.kept'] ?? '{}').picture")
    page.route("**/gradio_api/upload*", lambda route: route.fulfill(status=429, body="{}"))
    reload(page)
    page.get_by_text("its picture is not here any more").wait_for()
    assert said(page)[0] == "What is it?"
    page.unroute("**/gradio_api/upload*")
    assert ask(page, "In words?") == "3 messages, pictures []: In words?"


FORGED = {
    "no JSON": "{",
    "null": "null",
    "another shape": json.dumps({"text": {"turns": 1}}),
    "a text that is none": json.dumps({"text": "[]", "picture": None}),
    "a path": json.dumps({"text": '{"turns": [["a", {"path": "/etc/passwd"}]], "picture": true}'}),
    "an address for a picture": json.dumps(
        {"text": '{"turns": [["One?", "1."]], "picture": true}', "picture": "http://e.v/a.png"}
    ),
    "too much": json.dumps({"text": "x" * 60_000, "picture": None}),
}


@pytest.mark.parametrize("case", FORGED)
def test_whatever_lies_in_the_storage_the_page_goes_on(
    browser: Any, toy: ToyPage, case: str
) -> None:
    asked: list[str] = []
    page = new_visitor(browser, toy.url)
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "text => { localStorage['phisense.keep'] = '1'; localStorage['phisense.kept'] = text }",
        FORGED[case],
    )
    reload(page)
    page.wait_for_timeout(1000)
    found = ask(page, "What is it?")
    assert found.endswith("pictures []: What is it?")
    wait_for_storage(page, "localStorage['phisense.kept'].includes('What is it?')")
    assert [url for url in asked if not url.startswith((toy.url, "data:", "blob:"))] == []


FULL = """const set = Storage.prototype.setItem
Storage.prototype.setItem = function (key, value) {
  if (value.length > 600) throw new DOMException('full', 'QuotaExceededError')
  set.call(this, key, value)
}"""
NONE = """Object.defineProperty(window, 'localStorage', {get() {
  throw new DOMException('denied', 'SecurityError')
}})"""


def test_without_room_for_the_picture_the_words_are_kept(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url, before=FULL)
    keep(page)
    upload(page, toy.picture)
    ask(page, "What is it?")
    wait_for_storage(page, "'phisense.kept' in localStorage")
    assert json.loads(page.evaluate("localStorage['phisense.kept']"))["picture"] is None
    ask(page, "x" * 600)  # nor is there room for these
    page.wait_for_function(
        "document.querySelector('#announced').textContent.includes('no room')"
        " || !('phisense.kept' in localStorage)"
    )


def test_without_a_storage_nothing_is_offered_and_the_page_answers(
    browser: Any, toy: ToyPage
) -> None:
    page = new_visitor(browser, toy.url, before=NONE)
    open_settings(page)
    assert not page.locator("#keep").is_visible()
    assert not page.locator("#delete").is_visible()
    assert ask(page, "What is it?")


def test_without_the_script_the_page_answers(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    page.evaluate("delete window.phisense")
    assert ask(page, "What is it?")
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#conversation [data-testid=bot]')")
    visit(page, toy.url)


def test_restored_conversations_leave_nothing_on_the_server(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    keep(page)
    ask(page, "What is it?")
    wait_for_storage(page, "'phisense.kept' in localStorage")
    reload(page)
    page.get_by_text("Kept by this browser").wait_for()
    sessions = toy.page.room.sessions
    assert any(one.lines for one in sessions.values())  # while the page is open
    page.goto("about:blank")
    for _ in range(100):
        if not any("What is it?" in line.text for one in sessions.values() for line in one.lines):
            return
        page.wait_for_timeout(100)
    raise AssertionError("a session that was left still has its conversation")
