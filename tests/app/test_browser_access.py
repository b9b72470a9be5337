"""The page for everybody: named and in contrast for axe-core, by keyboard alone, on a phone, for a
screen reader, read aloud.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import LONG
from .browsing import BROWSER_MARKS, ask, new_visitor, open_settings, shot, upload
from .conftest import ToyPage

pytestmark = BROWSER_MARKS

SCREENS = {
    "desktop light": ((1280, 900), "light"),
    "phone dark": ((390, 844), "dark"),
    **(
        {"desktop dark": ((1280, 900), "dark"), "phone light": ((390, 844), "light")}
        if LONG
        else {}
    ),
}
MAIN_BUTTONS = (
    "#send, #stop, #read, #clear, #download, #dark, #where, #delete, [role=tab], .label-wrap"
)
SHORT_TIMES = re.compile(r"(?<![\d.])0(\.\d+)?\s?s\b")
LONG_WORD = "x" * 300


def visitor_on(browser: Any, toy: ToyPage, screen: str, **options: Any) -> Any:
    (width, height), scheme = SCREENS[screen]
    return new_visitor(
        browser,
        toy.url,
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        **options,
    )


def states(page: Any, toy: ToyPage, broken: Path) -> Iterator[str]:
    """Walks through the states of the page, and names each."""
    page.wait_for_timeout(500)
    yield "empty"
    upload(page, toy.picture)
    yield "picture"
    toy.engine.go.clear()
    page.locator("#question textarea").fill(f"What is it? {LONG_WORD}")
    page.keyboard.press("Enter")
    page.get_by_text("1 messages,").wait_for()
    yield "answering"
    toy.engine.go.set()
    page.get_by_text("pictures [").wait_for()
    page.get_by_label("Retry").last.wait_for()
    yield "answered"
    page.locator("#where").click()
    page.locator("#looked img").wait_for()
    yield "overlay"
    open_settings(page)
    yield "settings"
    page.get_by_label("Edit").last.click()
    page.get_by_label("Submit").wait_for()
    yield "editing"
    page.get_by_label("Cancel").click()
    page.locator("#examples button.thumbnail-item").first.click()
    page.locator("#ready button").first.wait_for()
    page.wait_for_timeout(500)
    yield "example"
    page.get_by_role("tab", name="Voice").click()
    page.locator("#sound").wait_for()
    yield "voice"
    page.get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(str(broken))
    page.get_by_text("The upload is no picture").first.wait_for()
    yield "refused"


def serious(page: Any) -> list[str]:
    """What axe-core finds of impact serious or critical: rule and elements."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page.wait_for_timeout(400)  # what fades in has little contrast until it is there
    return [
        f"{found['id']}: {node['html'][:200]}"
        for found in axe.Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


TOO_WIDE = """() => {
  const wide = document.documentElement.scrollWidth - innerWidth
  const scrolls = (one) => one && one !== document.body && !one.matches('.gradio-container')
    && (['auto', 'scroll'].includes(getComputedStyle(one).overflowX) || scrolls(one.parentElement))
  const beyond = [...document.querySelectorAll('button, input, textarea, img, p, label, h1')]
    .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1
      && !one.closest('.sr-only, .visually-hidden') && !scrolls(one.parentElement))
  return [...(wide > 0 ? [`the page by ${wide} px`] : []),
          ...beyond.map((one) => one.outerHTML.slice(0, 200))]
}"""

UNDER_LABELS = """() => [...document.querySelectorAll('[data-testid=block-label]')]
  .filter((label) => label.checkVisibility()).flatMap((label) => {
    const top = (one) => one.getBoundingClientRect().top
    const edge = label.getBoundingClientRect().bottom
    return [...label.parentElement.querySelectorAll('img, .message')]
      .map((one) => [one.tagName,
        Math.max(top(one), top(one.closest('.bubble-wrap') ?? one))])
      .filter(([, begins]) => begins < edge - 1)
      .map(([what, begins]) => `${what} under ${label.innerText.trim()}: ${begins} < ${edge}`)
  })"""

SMALL = """selector => [...document.querySelectorAll(selector)]
  .filter((one) => one.checkVisibility() && !one.closest('.visually-hidden'))
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([, box]) => box.width < 44 || box.height < 44)
  .map(([one, box]) => `${one.id || one.innerText}: ${box.width} x ${box.height}`)"""


def faults(page: Any) -> list[str]:
    return [
        *(f"axe: {one}" for one in serious(page)),
        *(f"too wide: {one}" for one in page.evaluate(TOO_WIDE)),
        *(f"under its label: {one}" for one in page.evaluate(UNDER_LABELS)),
        *(f"too small: {one}" for one in page.evaluate(SMALL, MAIN_BUTTONS)),
        *(f"seconds below one: {one[0]}" for one in SHORT_TIMES.finditer(page.inner_text("body"))),
    ]


@pytest.mark.parametrize("screen", SCREENS)
def test_every_state_of_the_page_is_sound(
    browser: Any, toy: ToyPage, screen: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page = visitor_on(browser, toy, screen)
    found = {}
    for state in states(page, toy, tmp_path / "broken.png"):
        shot(page, f"{screen.replace(' ', '-')}-{state}")
        if wrong := faults(page):
            found[state] = wrong
    assert found == {}


ADD = "document.querySelector('main').insertAdjacentHTML('beforeend', `{html}`)"
STYLE = "document.head.insertAdjacentHTML('beforeend', `<style>{html}</style>`)"
DAMAGED = {
    "axe: button-name": (ADD, "<button><svg width=44 height=44></svg></button>"),
    "axe: label": (ADD, "<input type=text>"),
    "axe: color-contrast": (ADD, "<p style='color: #999; background: #aaa'>pale</p>"),
    "axe: image-alt": (ADD, "<img src='data:,' width=44 height=44>"),
    "too wide: the page": (
        "document.body.insertAdjacentHTML('beforeend', `{html}`)",
        "<div style='width: 500px; height: 1px'></div>",
    ),
    "too wide: <button": (ADD, "<button style='width: 500px; flex: none'>wide</button>"),
    "under its label: IMG under Where": (STYLE, "#looked img {position: relative; top: -9rem}"),
    "under its label: DIV under Conv": (STYLE, "#conversation .bubble-wrap {margin: 0 !important}"),
    "too small: send": (STYLE, "#send {min-height: 0 !important; height: 20px !important}"),
    "seconds below one": (ADD, "<p>0.4s</p>"),
}


def test_what_is_wrong_with_a_damaged_page_is_found(browser: Any, toy: ToyPage) -> None:
    """The controls: each damage is found, and by its own guard."""
    page = visitor_on(browser, toy, "phone dark")
    upload(page, toy.picture)
    for number in range(4):  # enough that they scroll
        ask(page, f"What is it, {number}?")
    page.locator("#where").click()
    page.locator("#looked img").wait_for()
    assert faults(page) == []
    for script, html in DAMAGED.values():
        page.evaluate(script.format(html=html))
    found = faults(page)
    assert [name for name in DAMAGED if not any(one.startswith(name) for one in found)] == []


@pytest.mark.parametrize(
    ("text", "short"),
    [("0.4s", 1), ("0 s", 1), ("… 0.0 s", 1), ("400 ms of 1.8 s", 0), ("10 s", 0), ("1.0 s", 0)],
)
def test_times_below_a_second_are_recognised(text: str, short: int) -> None:
    assert len(SHORT_TIMES.findall(text)) == short


WATCH_TIMES = """() => { window.shown = new Set(); const look = () => {
  for (const one of document.querySelectorAll('.progress-text, #timing, [data-testid=bot]')) {
    shown.add(one.innerText.trim())
  }
  requestAnimationFrame(look) }; look() }"""


def test_no_time_below_a_second_is_ever_painted_in_seconds(browser: Any, toy: ToyPage) -> None:
    """Whatever is on the page when it is painted, from the question to the answer."""
    page = new_visitor(browser, toy.url)
    page.evaluate(WATCH_TIMES)
    for _ in range(2):  # the second time Gradio knows how long to expect it to take
        toy.engine.go.clear()
        page.locator("#question textarea").fill("What is it?")
        page.keyboard.press("Enter")
        page.wait_for_timeout(1500)
        toy.engine.go.set()
        page.get_by_text("pictures []").last.wait_for()
        page.wait_for_timeout(300)
    shown = page.evaluate("[...shown]")
    assert any(re.search(r"\d ms", one) for one in shown)
    assert [one for one in shown if SHORT_TIMES.search(one)] == []


REACHABLE = """() => [...document.querySelectorAll('main :is(button, input, textarea, [tabindex])')]
  .filter((one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled
    && one.tabIndex >= 0 && one.type !== 'file' && !one.closest('[aria-hidden=true], .hide'))
  .map((one, index) => { one.dataset.stop = index; return one.outerHTML.slice(0, 160) })"""
FOCUSED = """() => { const one = document.activeElement, style = getComputedStyle(one)
  return [one.dataset.stop ?? null, one.outerHTML.slice(0, 160),
    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2] }"""


def walk(page: Any) -> tuple[list[str], list[str]]:
    """Tab through the whole page: which controls are never reached, and which are reached without
    being seen to have the keyboard.
    """
    wanted = page.evaluate(REACHABLE)
    page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    reached, unseen = set(), []
    for _ in range(2 * len(wanted) + 10):
        page.keyboard.press("Tab")
        stop, html, seen = page.evaluate(FOCUSED)
        if stop is not None and stop not in reached and not seen:
            unseen.append(html)
        reached.add(stop)
    return [html for index, html in enumerate(wanted) if str(index) not in reached], unseen


def test_every_control_is_reached_by_tab_and_seen_to_be(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    upload(page, toy.picture)
    ask(page, "What is it?")
    page.locator("#where").click()
    page.locator("#looked img").wait_for()
    open_settings(page)
    page.get_by_label("Retry").last.wait_for()
    assert walk(page) == ([], [])
    # the controls: one that a key cannot reach, and no outline
    page.evaluate(STYLE.format(html="#stop:focus-visible {outline: none !important}"))
    page.evaluate(
        "addEventListener('focusin', (event) => event.target.id === 'clear' && event.target.blur())"
    )
    unreached, unseen = walk(page)
    assert any("clear" in html for html in unreached)
    assert any("stop" in html for html in unseen)


def test_by_keyboard_alone(browser: Any, toy: ToyPage) -> None:
    """An example is chosen and asked about, the map is shown, the settings are changed."""
    page = new_visitor(browser, toy.url)

    def press(selector: str, key: str) -> None:
        for _ in range(60):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                page.keyboard.press(key)
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not come to {selector}")

    page.keyboard.type("Hello?")  # where the page begins
    page.keyboard.press("Enter")
    page.get_by_text(": Hello?").wait_for()
    press("#examples button.thumbnail-item", "Enter")
    page.locator("#ready button").first.wait_for()
    page.wait_for_timeout(500)
    press("#ready button", "Enter")
    page.get_by_text(": What is it?").wait_for()
    press("#where", "Enter")
    page.locator("#looked img").wait_for()
    press("#settings .label-wrap", "Enter")
    page.locator("#keep input").wait_for()
    press("#warmth input[type=range]", "ArrowRight")
    page.wait_for_function("document.querySelector('#warmth input').value === '0.1'")
    press("#keep input", "Space")
    page.wait_for_function("'phisense.kept' in localStorage")
    press("#delete", "Enter")
    page.wait_for_function("localStorage.length === 0")
    press("#clear", "Space")
    page.wait_for_function("!document.querySelector('#conversation [data-testid=bot]')")


WATCH_LIVE = """() => { window.told = []
  const live = () => [...document.querySelectorAll(
    '[role=status], [role=alert], [role=log], [aria-live]')].filter((one) => one.ariaLive !== 'off')
  let before = ''
  const said = (one) => one.innerText.trim().replace(/^Loading( content)?$/, '')  // Gradio's own
  const look = () => { const now = live().map(said).filter(Boolean).join('|')
    if (now !== before) told.push(now)
    before = now; requestAnimationFrame(look) }
  look() }"""


def test_a_screen_reader_is_told_of_the_complete_answer_once(browser: Any, toy: ToyPage) -> None:
    page = new_visitor(browser, toy.url)
    ask(page, "First?")
    page.wait_for_timeout(500)
    page.evaluate(WATCH_LIVE)
    before = page.evaluate("told")
    toy.engine.go.clear()
    page.locator("#question textarea").fill("Second?")
    page.keyboard.press("Enter")
    page.get_by_text("3 messages,").wait_for()
    page.wait_for_timeout(1000)
    assert page.evaluate("told") == before
    toy.engine.go.set()
    page.wait_for_function("n => told.length > n", arg=len(before))
    page.wait_for_timeout(500)
    told = page.evaluate("told")[len(before) :]
    assert len(told) == 1
    assert "3 messages, pictures []: Second?" in told[0]
    # the control: the log as Gradio leaves it is read at every word
    page.evaluate(
        """() => { const log = document.querySelector('#conversation [role=log]')
        log.setAttribute('aria-live', 'polite')
        log.getAttribute = () => 'off'; log.setAttribute = () => {} }"""
    )
    toy.engine.go.clear()
    page.locator("#question textarea").fill("Third?")
    page.keyboard.press("Enter")
    page.get_by_text("5 messages,").wait_for()
    page.wait_for_function("n => told.length > n", arg=len(before) + 1)


VOICE = """window.spoken = []; window.cancelled = 0
window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text } }
Object.defineProperty(window, 'speechSynthesis', {configurable: true, value: {
  speak(one) { spoken.push(one) }, cancel() { cancelled += 1 } }})"""
NO_VOICE = "delete window.speechSynthesis; delete Window.prototype.speechSynthesis"


@pytest.mark.parametrize(
    ("question", "language", "sentences"),
    [
        ("Is it red? Or blue. Or 3.5 of both!", "en", 3),
        ("Что это? Круг.", "ru", 2),
        ("これは何ですか。円です", "ja", 2),
        ("这是什么？圆", "zh", 2),
        ("이것은 무엇입니까", "ko", 1),
    ],
)
def test_the_last_answer_is_read_aloud(
    browser: Any, toy: ToyPage, question: str, language: str, sentences: int
) -> None:
    page = new_visitor(browser, toy.url, before=VOICE)
    pressed = "document.querySelector('#read').ariaPressed"
    page.locator("#read").click()  # nothing to read yet
    assert page.evaluate("spoken") == []
    answer = ask(page, question)
    page.locator("#read").click()
    page.wait_for_function("spoken.length > 0")
    said = page.evaluate("spoken.map((one) => one.text)")
    assert "".join(said).replace(" ", "") == answer.replace(" ", "")
    assert len(said) == sentences
    assert set(page.evaluate("spoken.map((one) => one.lang)")) == {language}
    assert page.evaluate(pressed) == "true"
    before = page.evaluate("cancelled")
    page.locator("#read").click()
    page.wait_for_function(f"{pressed} === 'false'")
    assert page.evaluate("cancelled") > before
    assert page.evaluate("spoken.length") == len(said)
    page.locator("#read").click()
    page.wait_for_function(f"{pressed} === 'true'")
    page.evaluate("spoken.at(-1).onend()")
    assert page.evaluate(pressed) == "false"


def test_without_a_voice_no_reading_is_offered(browser: Any, toy: ToyPage) -> None:
    """The control has one."""
    page = new_visitor(browser, toy.url, before=NO_VOICE)
    page.wait_for_timeout(500)
    assert not page.locator("#read").is_visible()
    other = new_visitor(browser, toy.url, before=VOICE)
    other.locator("#read").wait_for()
