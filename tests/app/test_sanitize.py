"""What a browser is given of a question, of an answer, and a visitor of an error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from phisense.app.sanitize import (
    escape_markdown,
    public_error_message,
    sanitize_markdown,
    unescape_markdown,
)
from phisense.errors import ArtifactError, PartError


def test_answers_fetch_nothing_and_numbers_stay_numbers() -> None:
    assert (
        sanitize_markdown(
            "See ![x](http://evil/a.png) and [here](http://evil) <img src=x onerror=1> now"
        )
        == "See x and here \\<img src=x onerror=1> now"
    )
    assert sanitize_markdown("2.") == sanitize_markdown("2. ") == "2\\."
    assert sanitize_markdown(" 2.") == " 2\\."
    assert sanitize_markdown("There are:\n1. a\n2. b") == "There are:\n1. a\n2. b"


@pytest.mark.parametrize("way", [sanitize_markdown, escape_markdown])
@pytest.mark.parametrize(
    "text",
    [
        "![x][ref]\n\n[ref]: http://evil/a.png",
        "<img src=http://evil/a.png",
        "<<img src=http://evil/a.png>img src=http://evil/b.png>",
        "[![x](http://evil/a)](http://evil/b)",
        "![x](http://evil/a.png",
        "![a[b]c](http://evil/a.png)",
        "![a\\]b](http://evil/a.png)",
        "1. [ref]: http://evil/a.png\n\n![ref]",
        "> [ref]: http://evil/a.png",
        "<!-- --><svg onload=1>",
        "see http://evil/a",
        "\\<img src=x>",
        "`a\n![x](http://evil/a.png) `b` ![x](http://evil/a.png)",
        "`` ` ![x](http://evil/a.png) ``` ![x](http://evil/a.png)",
        "| ` | ![x](http://evil/a.png) | ` |\n|---|---|---|",
        "   ~~~ a ` b\n![x](http://evil/a.png)",
        "```\n``` a\n```\n![x](http://evil/a.png)",
    ],
)
def test_no_way_of_writing_a_picture_a_link_or_a_tag_is_left(text: str, way: object) -> None:
    """What is not taken out is escaped, and an escape of the text's own does not undo that."""
    left = way(text)  # type: ignore[operator]
    assert "://" not in left
    for at, character in enumerate(left):
        if character in "[]<":
            escapes = len(left[:at]) - len(left[:at].rstrip("\\"))
            assert escapes % 2 == 1, left


def test_what_looks_like_a_tag_is_shown() -> None:
    assert sanitize_markdown("is x <y and then?") == "is x \\<y and then?"
    assert sanitize_markdown("a<b and c>d") == escape_markdown("a<b and c>d") == "a\\<b and c>d"
    assert sanitize_markdown("a[0] and 1 < 2") == "a\\[0\\] and 1 \\< 2"
    assert sanitize_markdown("&lt;b>") == "\\&lt;b>"


def test_code_stays_code() -> None:
    assert sanitize_markdown("Use `a[0]` here, not a[1].") == "Use `a[0]` here, not a\\[1\\]."
    assert (
        sanitize_markdown("So:\n```py\nx = a[0] < b\n```\ndone [x](y)")
        == "So:\n\n```py\nx = a[0] < b\n```\n\ndone x"
    )
    assert sanitize_markdown("~~~\n```\n![x](http://y)\n~~~") == "````\n```\n![x](http://y)\n````"
    assert sanitize_markdown("```\nnot yet clo") == "```\nnot yet clo\n```"
    assert sanitize_markdown("```mermaid\ngraph\n```") == "```\ngraph\n```"


@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        "What comes after 3?",
        "How many things are there?",
        "Où est-ce, à 3.5 m?",
        "漢字 😀",
    ],
)
def test_what_means_nothing_stays_as_it_is(text: str) -> None:
    assert escape_markdown(text) == sanitize_markdown(text) == text


def test_a_question_can_be_had_back_from_what_is_shown() -> None:
    """10,000 drawn texts of all that Markdown has signs for."""
    rng = random.Random(0)
    signs = [
        *"\\`*_{}[]()#+-.!|<>~^$&;:@/=\"' \n0127abx",
        "&lt;",
        "www.",
        "://",
        "é",
        "😀",
        "    ",
        "\n\n\n",
        "- ",
        "1. ",
        "```",
    ]
    for _ in range(10_000):
        text = "".join(rng.choices(signs, k=rng.randrange(1, 30))).strip()
        assert unescape_markdown(escape_markdown(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["[", "![", "[a](", "[]: ", "``a`", "1.\n", "[\n", "<b and c>d ", "//", "~", "```\n", "&a"],
)
def test_long_texts_come_to_an_end(text: str) -> None:
    """Each of these took minutes, or would, where a repetition stands within another;
    `bench/strangers.py --only typed` times them.
    """
    given = text * (200_000 // len(text))
    assert unescape_markdown(escape_markdown(given.strip())) == given.strip()
    assert sanitize_markdown(given) is not None
    assert len(public_error_message(PartError(given))) < 10_000


def test_errors_name_no_places(caplog: pytest.LogCaptureFixture) -> None:
    error = PartError(
        "the part /srv/models/phi cannot be loaded",
        got="http://10.0.0.7:8000/v1 says no",
        do="See ~/parts/notes.txt",
    )
    assert str(error).count("/") > 5  # the control: it did name them
    assert public_error_message(error) == "the part … cannot be loaded; got … says no. See …."
    assert (
        public_error_message(ArtifactError("it is at 192.168.1.4:80 or C:\\models\\a"))
        == "it is at … or …."
    )
    assert (
        public_error_message(PartError("at most 1/2 of 3.5 and/or <b>"))
        == "at most 1/2 of 3.5 and/or &lt;b&gt;."
    )


def test_what_broke_is_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert "secret" not in public_error_message(RuntimeError("secret", Path("/srv/secret")))
    assert "secret" in caplog.text
