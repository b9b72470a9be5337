"""What a browser is given of an answer, and a visitor of an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from phisense.app.taming import tame, told
from phisense.errors import ArtefactError, PartError


def test_answers_fetch_nothing_and_numbers_stay_numbers() -> None:
    assert tame("See ![x](http://evil/a.png) and [here](http://evil) <img src=x onerror=1> now") == "See x and here  now"
    assert tame("2.") == tame("2. ") == "2\\."
    assert tame(" 2.") == " 2\\."
    assert tame("There are:\n1. a\n2. b") == "There are:\n1. a\n2. b"


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
    ],
)
def test_no_way_of_writing_a_picture_a_link_or_a_tag_is_left(text: str) -> None:
    """What is not taken out is escaped, and an escape of the text's own does not undo that."""
    left = tame(text)
    assert "://" not in left
    for at, character in enumerate(left):
        if character in "[]<":
            escapes = len(left[:at]) - len(left[:at].rstrip("\\"))
            assert escapes % 2 == 1, left


def test_what_looks_like_a_tag_is_shown() -> None:
    assert tame("is x <y and then?") == "is x \\<y and then?"
    assert tame("a[0] and 1 < 2") == "a\\[0\\] and 1 \\< 2"


def test_errors_name_no_places(caplog: pytest.LogCaptureFixture) -> None:
    error = PartError("the part /srv/models/phi cannot be loaded", got="http://10.0.0.7:8000/v1 says no", do="See ~/parts/notes.txt")
    assert str(error).count("/") > 5  # the control: it did name them
    assert told(error) == "the part … cannot be loaded; got … says no. See …."
    assert told(ArtefactError("it is at 192.168.1.4:80 or C:\\models\\a")) == "it is at … or …."
    assert told(PartError("at most 1/2 of 3.5 and/or <b>")) == "at most 1/2 of 3.5 and/or &lt;b&gt;."


def test_what_broke_is_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert "secret" not in told(RuntimeError("secret", Path("/srv/secret")))
    assert "secret" in caplog.text
