"""Parts of messages and turns in other forms: numbered pictures, places that the text says itself,
XTuner's exchanges, very many turns.
"""

from __future__ import annotations

import base64
import io
from itertools import permutations
from typing import Any

import pytest
from PIL import Image

from phisense.conversations import IMAGE
from phisense.conversations.rows import Row, validate_row


def picture(number: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "image", "index": number, "text": None, **more}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "index": None}


def asked(*parts: Any, **more: Any) -> Row:
    return validate_row(
        {
            "messages": [
                {"role": "user", "content": list(parts)},
                {"role": "assistant", "content": "Yes."},
            ],
            **more,
        },
        1,
    )


def names(row: Row) -> list[str]:
    return [picture.name for picture in row.pictures]


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("kind", [int, float])
def test_numbered_parts_show_the_pictures_of_their_numbers(start: int, kind: type) -> None:
    pictures = ["a.jpg", "b.jpg", "c.jpg"]
    for order in permutations(range(3)):
        row = asked(*(picture(kind(at + start)) for at in order), text("Same?"), images=pictures)
        assert row.faults == []
        assert row.ignored_keys == ()
        assert names(row) == [pictures[at] for at in order]


@pytest.mark.parametrize(
    "numbers",
    [(0, 0), (1, 1), (0, 2), (2, 3), (0, None), (None, 1), (-1, 0), ("x", 1), (True, 0), (0, 0.5)],
)
def test_numbers_that_leave_a_picture_open_reject_the_row(numbers: tuple[Any, ...]) -> None:
    row = asked(*map(picture, numbers), text("Same?"), images=["a.jpg", "b.jpg"])
    assert [code for code, _ in row.faults] == ["bad-picture-name"]
    assert asked(*(picture() for _ in numbers), text("Same?"), images=["a.jpg", "b.jpg"]).good


def test_numbers_over_several_turns() -> None:
    turns = [
        {"role": "user", "content": [text("First:"), picture(1)]},
        {"role": "assistant", "content": [text("A star.")]},
        {"role": "user", "content": [picture(0), text("And this?")]},
        {"role": "assistant", "content": [text("A ring.")]},
    ]
    row = validate_row({"messages": turns, "images": ["a.jpg", "b.jpg"]}, 1)
    assert row.good
    assert names(row) == ["b.jpg", "a.jpg"]


def test_a_part_that_has_its_picture_needs_no_number() -> None:
    assert (
        asked(picture(0, image="a.jpg"), picture(1, image="b.jpg"), text("Same?")).ignored_keys
        == ()
    )
    swapped = asked(picture(1, image="a.jpg"), picture(0, image="b.jpg"), text("Same?"))
    assert names(swapped) == ["a.jpg", "b.jpg"]
    assert swapped.ignored_keys == (("a part", "index"),)


@pytest.mark.parametrize(
    "tag",
    [
        IMAGE,
        "<IMG_CONTEXT>",
        "<Image>",
        "<|image_1|>",
        "(<image>./</image>)",
        "<image_placeholder>",
    ],
)
@pytest.mark.parametrize("form", ["{}\nWhat is this?", "What is this?\n{}", "What is this? {}"])
def test_a_text_that_says_the_place_itself_gets_no_second_marker(tag: str, form: str) -> None:
    for parts in ([picture(), text(form.format(tag))], [text(form.format(tag)), picture()]):
        row = asked(*parts, images=["a.jpg"])
        assert row.faults == []
        assert row.conversation().messages[0].text == form.format(IMAGE)
    assert [
        code
        for code, _ in asked(
            picture(), picture(), text(form.format(tag)), images=["a.jpg", "b.jpg"]
        ).faults
    ] == ["foreign-tag" if tag == "<Image>" else "image-count"]
    if IMAGE not in tag:
        assert (
            asked(picture(), text(f"What is `{tag}`?"), images=["a.jpg"]).turns[0][1]
            == f"{IMAGE}\nWhat is `{tag}`?"
        )


def test_exchanges_of_input_and_output() -> None:
    exchange = {"system": "Be brief.", "input": f"{IMAGE}\nWhat?", "output": "A star."}
    for more in (
        {"input": "And?", "output": "A ring."},
        {"system": "Be brief.", "input": "And?", "output": "A ring."},
    ):
        row = validate_row({"image": "a.jpg", "conversation": [exchange, more]}, 1)
        assert row.faults == []
        assert row.ignored_keys == ()
        assert [message.role for message in row.conversation().messages] == [
            "system",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
    other = validate_row(
        {
            "image": "a.jpg",
            "conversation": [exchange, {"system": "Rhyme.", "input": "And?", "output": "A ring."}],
        },
        1,
    )
    assert [code for code, _ in other.faults] == ["wrong-order"]
    assert not validate_row({"conversation": [{"input": "And?", "output": 3}]}, 1).good
    assert validate_row(
        {"conversation": [{"input": "And?", "output": "Yes.", "mood": "glad"}]}, 1
    ).ignored_keys == (("a text", "mood"),)


MANY = 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["weights and unread keys", "pictures of turns", "numbered parts", "one role"]
)
def test_very_many_turns_are_read(kind: str) -> None:
    """Each would take minutes if what grows with the turns were copied at each of them."""
    answer = {"role": "assistant", "content": "Yes."}
    half = range(MANY // 2)
    row: dict[str, Any] = {}
    if kind == "one role":
        turns: list[Any] = [{"role": "user", "content": f"Part {at} "} for at in range(MANY)] + [
            answer
        ]
    elif kind == "numbered parts":
        turns = [
            turn
            for at in half
            for turn in ({"role": "user", "content": [picture(at), text("And?")]}, answer)
        ]
        row = {"images": [f"{at}.jpg" for at in half]}
    else:
        more = {"image": "a.jpg"} if kind == "pictures of turns" else {}
        weight = {"weight": 0, "mood": 1} if not more else {}
        turns = [
            turn
            for _ in half
            for turn in ({"role": "user", "content": "And?", **more}, {**answer, **weight})
        ]
        turns[-1] = answer
    examined = validate_row({"messages": turns, **row}, 1)
    assert examined.good
    if kind == "one role":
        assert [role for role, _ in examined.turns] == ["user", "assistant"]
        assert (
            examined.turns[0][1]
            == "".join(f"Part {at}\n" for at in range(MANY - 1)) + f"Part {MANY - 1} "
        )
    else:
        assert len(examined.turns) == MANY
        assert len(examined.pictures) == (0 if kind[0] == "w" else MANY // 2)
        assert len(examined.unsupervised) == (MANY // 2 - 1 if kind[0] == "w" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("form", ["plain", "lines", "listed"])
def test_base64_is_a_picture_and_no_name(kind: str, form: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((16, 16), 50).save(file, kind)
    spelled = base64.b64encode(file.getvalue()).decode()
    told: Any = {
        "plain": spelled,
        "lines": "\n".join(spelled[at : at + 76] for at in range(0, len(spelled), 76)),
        "listed": [spelled],
    }[form]
    for row in (
        {"image": told, "question": "What?", "answer": "A star."},
        {"image": told, "image_path": "a.jpg", "question": "?", "answer": "A"},
    ):
        examined = validate_row(row, 7)
        assert examined.good
        assert list(examined.embedded.values()) == [file.getvalue()]
        assert examined.id is None


def test_a_name_that_begins_like_base64_is_a_name() -> None:
    for name in ("/9j/" + "a" * 200 + ".jpg", "Qk/a.bmp", "iVBORw0KGgo", "UklGR" + " a" * 80):
        examined = validate_row({"image": name, "question": "What?", "answer": "A star."}, 1)
        assert not examined.embedded
        assert names(examined) in ([name], [name.lstrip("/")])
