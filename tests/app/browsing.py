"""A real headless Chromium for tests of the page, and what they do on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BROWSER_MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium"),
]
SHOTS = os.environ.get("PHISENSE_SCREENSHOTS")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SLOW = 60_000  # ms


def launch_browser(sync: Any, flags: tuple[str, ...] = ()) -> Any:
    return sync.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])


def new_visitor(browser: Any, url: str, *, before: str = "", **options: Any) -> Any:
    """The page in a profile of its own; `before` is a script that runs before the page's."""
    options.setdefault("viewport", {"width": 1280, "height": 900})
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(SLOW)
    if before:
        page.add_init_script(before)
    visit(page, url)
    return page


def visit(page: Any, url: str) -> None:
    page.goto(url)
    page.locator("#question textarea").wait_for()


def open_page(
    sync: Any, url: str, *, width: int = 1280, flags: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    browser = launch_browser(sync, flags)
    viewport = {"width": width, "height": 900}
    permissions = {"permissions": ["microphone"]} if flags else {}
    return browser, new_visitor(browser, url, viewport=viewport, **permissions)


def ask(page: Any, question: str) -> str:
    """A toy's answer, which ends with the question."""
    page.locator("#question textarea").fill(question)
    page.keyboard.press("Enter")
    answer = page.locator("#conversation [data-testid=bot]", has_text=f": {question}").last
    answer.wait_for()
    return str(answer.inner_text().strip())


def open_settings(page: Any) -> None:
    page.locator("#settings .label-wrap").click()
    page.locator("#tokens input").first.wait_for()


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def wait_for_answer(page: Any, count: int = 1) -> str:
    page.wait_for_function(
        "n => document.querySelectorAll('#conversation [data-testid=bot]').length >= n",
        arg=count,
    )
    last = page.locator("#conversation [data-testid=bot]").nth(count - 1)
    text = ""
    for _ in range(100):  # until it has stood still for half a second
        page.wait_for_timeout(500)
        if text and last.inner_text().strip() == text:
            break
        text = last.inner_text().strip()
    return text


def upload(page: Any, picture: Path) -> None:
    page.locator("#picture input[type=file]").set_input_files(str(picture))
    page.locator("#picture img").first.wait_for()
    page.wait_for_timeout(500)
