"""Each class of defect, seeded once in an otherwise clean set: found in its row, and nothing else
is.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phisense.conversations import IMAGE, CheckReport, check
from phisense.conversations.defects import AGGREGATED, DEFECT_KINDS
from phisense.practice.draw import draw_scene
from phisense.practice.world import Scene, Thing
from phisense.vision.image_checks import check_image
from phisense.vision.leaks import HeldOutImages

HERE, OUT_OF = 4, 9  # the fifth row of nine is the one that is broken

Row = dict[str, Any]
Break = Callable[[Row, Path], Any]


def picture(number: int) -> Image.Image:
    return draw_scene(
        Scene(
            (
                Thing("circle", "red", "large", number % 4),
                Thing("star", "blue", "small", (number + 1) % 4),
            ),
            seed=number,
        )
    )


def clean(folder: Path) -> list[Row]:
    """Rows as LLaVA's, each with a picture of its own."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(OUT_OF):
        picture(i).save(folder / f"{i}.jpg", quality=90)
        turns = [
            {"from": "human", "value": f"{IMAGE}\nWhat is shown {i}?"},
            {"from": "gpt", "value": f"Thing {i}."},
        ]
        rows.append({"id": f"r{i}", "image": f"{i}.jpg", "conversations": turns})
    return rows


def look_through(path: Path, images: Path, **more: Any) -> CheckReport:
    return check(path, [images], check_image=partial(check_image, decode=True), **more)


def turn(at: int, **changed: str) -> Break:
    def apply(row: Row, folder: Path) -> Any:
        row["conversations"][at].update(changed)
        return row

    return apply


def with_(**changed: Any) -> Break:
    return lambda row, folder: {**row, **changed}


def file(write: Callable[[Path], Any], name: str | None = None) -> Break:
    """Replaces the row's picture by what `write` writes."""

    def apply(row: Row, folder: Path) -> Any:
        (folder / row["image"]).unlink()
        row["image"] = name or row["image"]
        write(folder / row["image"])
        return row

    return apply


def saved(name: str, make: Callable[[], Image.Image], **how: Any) -> Break:
    return file(lambda path: make().save(path, **how), name)


def bomb(path: Path) -> None:
    """A PNG whose header says 9000 x 9000; nothing behind it is decoded."""
    Image.new("1", (9000, 9000)).save(path, "PNG")


def turned() -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(4), exif


def frames(path: Path) -> None:
    picture(4).save(path, "GIF", save_all=True, append_images=[picture(5)])


def cut(path: Path, share: float = 0.6) -> None:
    data = io.BytesIO()
    picture(4).save(data, "JPEG", quality=90)
    path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * share)])


def damaged(path: Path) -> None:
    """A PNG with a wrong checksum in its pixels."""
    data = io.BytesIO()
    picture(4).save(data, "PNG")
    broken = bytearray(data.getvalue())
    broken[len(broken) // 2] ^= 0xFF
    path.write_bytes(bytes(broken))


def ambiguous(row: Row, folder: Path) -> Any:
    """Two files whose names differ in case alone, and a row that writes it in neither way."""
    for name in ("Star.jpg", "STAR.jpg"):
        picture(4).save(folder / name)
    return {**row, "image": "star.jpg"}


def url(row: Row, folder: Path) -> Any:
    told = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
    ]
    return {
        "id": row["id"],
        "messages": [{"role": "user", "content": told}, {"role": "assistant", "content": "A."}],
    }


def parts(kind: str) -> Break:
    def apply(row: Row, folder: Path) -> Any:
        return {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": [{"type": kind}]},
                {"role": "assistant", "content": "A."},
            ],
        }

    return apply


def of_row(number: int, *keys: str) -> Break:
    """Takes what another row has."""
    return lambda row, folder: {
        **row,
        **{
            key: json.loads((folder.parent / "clean.json").read_text())[number][key] for key in keys
        },
    }


#: For each class one way to break the fifth row.
BROKEN: dict[str, Break] = {
    "unknown-shape": lambda row, folder: {"id": row["id"], "words": "nothing known"},
    "no-turns": with_(conversations=[]),
    "bad-turn": lambda row, folder: {**row, "conversations": ["What?", *row["conversations"]]},
    "bad-picture-name": with_(image=7),
    "unsupported-part": parts("video"),
    "unknown-role": turn(0, **{"from": "robot"}),
    "unsupported-key": with_(video="a.mp4"),
    "ambiguous-keys": with_(file_name="another.jpg"),
    "bad-cell": with_(choices="[oops"),
    "bad-options": with_(choices=["star", "", "ring"]),
    "bad-weight": with_(weight=0.5),
    "foreign-tag": turn(1, value="<box>(1,2),(3,4)</box>"),
    "unread-key": with_(mood="good"),
    "options-added": lambda row, folder: {
        "id": row["id"],
        "image": row["image"],
        "question": "Which?",
        "choices": ["a", "b"],
        "answer": 1,
    },
    "joined-turns": lambda row, folder: {
        **row,
        "conversations": [*row["conversations"], {"from": "gpt", "value": "It is red."}],
    },
    "wrong-order": lambda row, folder: {
        **row,
        "conversations": [{"from": "gpt", "value": "Hello."}, *row["conversations"]],
    },
    "empty-turn": turn(1, value="  "),
    "no-answer": lambda row, folder: {**row, "conversations": row["conversations"][:1]},
    "control-token": turn(1, value="Yes.<|end|>"),
    "image-in-answer": turn(1, value=f"See {IMAGE}."),
    "image-count": turn(0, value=f"{IMAGE}{IMAGE}\nWhat?"),
    "long-answer": turn(1, value="word " * 5000),
    "too-long": turn(1, value="word " * 500),
    "duplicate-row": of_row(1, "image", "conversations"),
    "leak": lambda row, folder: {**row, "image": "held.jpg"},
    "near-leak": lambda row, folder: {**row, "image": "again.png"},
    "path-escape": with_(image="../.."),
    "ambiguous-picture": ambiguous,
    "remote-url": with_(image="https://example.com/a.jpg"),
    "bad-data-url": url,
    "missing-picture": with_(image="nowhere.jpg"),
    "empty-picture": file(lambda path: path.write_bytes(b"")),
    "not-a-picture": file(lambda path: path.write_text("<html>404</html>")),
    "truncated-picture": file(cut),
    "damaged-picture": file(damaged, "4.png"),
    "too-many-pixels": file(bomb, "4.png"),
    "too-many-bytes": file(lambda path: path.write_bytes(b"\xff\xd8" + bytes(33 * 2**20))),
    "blank-picture": saved("4.png", lambda: Image.new("RGB", (64, 64), "red")),
    "too-narrow": saved("4.png", lambda: Image.new("RGB", (3000, 8))),
    "found-by-tail": lambda row, folder: {**row, "image": f"elsewhere/{row['image']}"},
    "duplicate-id": of_row(1, "id", "image"),
    "id-conflict": of_row(1, "id"),
    "marker-added": turn(0, value="What is shown?"),
    "unanswered": lambda row, folder: {
        **row,
        "conversations": [*row["conversations"], {"from": "human", "value": "And?"}],
    },
    "shortened": lambda row, folder: {
        **row,
        "conversations": [
            *row["conversations"],
            {"from": "human", "value": "Say it."},
            {"from": "gpt", "value": "word " * 500},
        ],
    },
    "more-captions": lambda row, folder: {"image": row["image"], "captions": ["One.", "Another."]},
    "one-colour": saved("4.png", lambda: Image.new("RGB", (32, 32), "red")),
    "exif-rotation": file(lambda path: turned()[0].save(path, exif=turned()[1])),
    "cmyk": saved("4.jpg", lambda: picture(4).convert("CMYK")),
    "palette": saved("4.png", lambda: picture(4).quantize(32)),
    "16-bit": saved(
        "4.png",
        lambda: Image.fromarray(np.asarray(picture(4).convert("L")).astype(np.uint16) * 257),
    ),
    "alpha": saved("4.png", lambda: picture(4).convert("RGBA")),
    "animated": file(frames, "4.gif"),
    "wrong-extension": saved("4.png", lambda: picture(4), format="JPEG"),
}
#: Broken as text, not as a row: see below.
IN_THE_FILE = {
    "malformed-json",
    "malformed-table",
    "not-utf8",
    "not-finite",
    "row-too-large",
    "other-encoding",
    "wrapped",
}


def held_out(folder: Path) -> HeldOutImages:
    """One picture kept apart; its bytes again, and the picture saved again in another format and
    size, lie among the others.
    """
    held = draw_scene(
        Scene((Thing("heart", "green", "large", 0), Thing("ring", "purple", "large", 3)), seed=99)
    )
    held.save(folder / "held.jpg", quality=90)
    held.resize((150, 150)).save(folder / "again.png")
    return HeldOutImages([("kept.jpg", (folder / "held.jpg").read_bytes())])


def measure(conversation: Any) -> list[tuple[str, str]]:
    """A stand-in for a recipe's tokenizer: a token a word."""
    first, *later = [
        len(message.text.split())
        for message in conversation.messages
        if message.role == "assistant"
    ]
    if first > 400:
        return [("too-long", "is too long")]
    return [("shortened", "has exchanges beyond the limit")] if first + sum(later) > 400 else []


def test_every_class_is_seeded() -> None:
    assert BROKEN.keys() | IN_THE_FILE == DEFECT_KINDS.keys()
    assert len(DEFECT_KINDS) >= 25


def test_a_clean_set_is_clean(tmp_path: Path) -> None:
    rows = clean(tmp_path / "images")
    (tmp_path / "clean.json").write_text(json.dumps(rows))
    found = look_through(
        tmp_path / "clean.json",
        tmp_path / "images",
        check_length=measure,
        leaks=held_out(tmp_path / "images").find_in,
    )
    assert found.findings == []
    assert (found.rows, found.good, found.turns, found.pictures, found.without_picture) == (
        OUT_OF,
        OUT_OF,
        OUT_OF,
        OUT_OF,
        0,
    )


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("code", sorted(BROKEN))
def test_a_seeded_defect_is_found_in_its_row_and_nothing_else_is(
    tmp_path: Path, code: str, suffix: str
) -> None:
    images = tmp_path / "images"
    rows: list[Any] = clean(images)
    (tmp_path / "clean.json").write_text(json.dumps(rows))
    leaks = held_out(images)
    rows[HERE] = BROKEN[code](rows[HERE], images)
    path = tmp_path / f"data.{suffix}"
    path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    found = look_through(path, images, check_length=measure, leaks=leaks.find_in)
    assert [(finding.row, finding.code) for finding in found.findings] == [(HERE + 1, code)]
    assert found.rejected == ({HERE + 1} if DEFECT_KINDS[code].rejects else set())
    assert found.good == OUT_OF - len(found.rejected)
    told = found.findings[0].to_finding().to_dict()
    assert told["do"] == DEFECT_KINDS[code].do
    if code not in ("more-captions", "duplicate-id", "id-conflict", *AGGREGATED):
        assert told["id"] == "r4"


@pytest.mark.parametrize(
    ("code", "broken", "where"),
    [
        ("malformed-json", b'{"id": "x", oops}', "line 5 column 13"),
        (
            "not-finite",
            (
                b'{"id": "r4", "score": NaN, "conversations": [{"from": "human", "value": "a"},'
                b' {"from": "gpt", "value": "b"}]}'
            ),
            "NaN",
        ),
        ("not-utf8", b'{"id": "caf\xe9"}', "line 5, byte 12 is 0xe9"),
        ("row-too-large", b'{"id": "' + b"x" * (65 * 2**20) + b'"}', "more than 64 MB"),
    ],
)
def test_a_bad_line_costs_one_row(tmp_path: Path, code: str, broken: bytes, where: str) -> None:
    lines = [json.dumps(row).encode() for row in clean(tmp_path / "images")]
    lines[HERE] = broken
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = look_through(path, tmp_path / "images")
    assert [(finding.row, finding.code) for finding in found.findings] == [(HERE + 1, code)]
    assert where in found.findings[0].what
    assert (found.rows, found.good) == (OUT_OF, OUT_OF - 1)


def test_a_broken_list_names_line_and_column(tmp_path: Path) -> None:
    text = json.dumps(clean(tmp_path / "images"), indent=1).replace('"id": "r4",', '"id": "r4"')
    path = tmp_path / "data.json"
    path.write_text(text)
    found = look_through(path, tmp_path / "images")
    assert [finding.code for finding in found.findings] == ["malformed-json"]
    place = re.search(r"line (\d+) column (\d+)", found.findings[0].what)
    assert place is not None
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    assert (int(place[1]), int(place[2])) == (
        theirs.value.lineno,
        theirs.value.colno,
    ), "where Python's own decoder sees it"
    assert found.good == HERE, "what came before it was read"


def test_a_bad_line_of_a_table_costs_one_row(tmp_path: Path) -> None:
    clean(tmp_path / "images")
    rows = [f"{i}.jpg,What is it?,Thing {i}." for i in range(OUT_OF)]
    rows[HERE] += ",one too many"
    (tmp_path / "data.csv").write_text("\n".join(["file_name,question,answer", *rows]))
    found = look_through(tmp_path / "data.csv", tmp_path / "images")
    assert [(finding.row, finding.code) for finding in found.findings] == [
        (HERE + 1, "malformed-table")
    ]


def test_a_picture_is_held_against_every_row_that_names_it(tmp_path: Path) -> None:
    rows = clean(tmp_path / "images")
    for i in (2, 3, 6):
        rows[i]["image"] = "gone.jpg"
    (tmp_path / "data.json").write_text(json.dumps(rows))
    found = look_through(tmp_path / "data.json", tmp_path / "images")
    assert [(finding.row, finding.code) for finding in found.findings] == [
        (n, "missing-picture") for n in (3, 4, 7)
    ]


def test_headers_alone_find_a_cut_off_picture(tmp_path: Path) -> None:
    """The end of the file is looked at; only damage in the middle needs decoding."""
    cut(tmp_path / "cut.jpg")
    damaged(tmp_path / "damaged.png")
    assert [code for code, _ in check_image(tmp_path / "cut.jpg", "cut.jpg", decode=False)] == [
        "truncated-picture"
    ]
    assert check_image(tmp_path / "damaged.png", "damaged.png", decode=False) == []


def test_near_leaks_are_pictures_saved_again_and_not_pictures_alike(tmp_path: Path) -> None:
    """Scenes that differ in one small digit are two pictures; JPEG of quality 40 at another size is
    the same one.
    """
    one = draw_scene(
        Scene((Thing("circle", "red", "large", 0), Thing("3", "blue", "small", 3)), seed=5)
    )
    other = draw_scene(
        Scene((Thing("circle", "red", "large", 0), Thing("8", "blue", "small", 3)), seed=5)
    )
    held = HeldOutImages([("held.png", encoded(one, "PNG"))])
    small = encoded(one.resize((128, 128)), "JPEG", quality=40)
    assert [code for _, (code, _) in held.find_in([("again.jpg", small)])] == ["near-leak"]
    assert list(held.find_in([("other.png", encoded(other, "PNG"))])) == []
    assert [code for _, (code, _) in held.find_in([("same.png", encoded(one, "PNG"))])] == ["leak"]


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()


def test_bytes_inside_the_file_are_looked_at_too(tmp_path: Path) -> None:
    good = "data:image/png;base64," + base64.b64encode(encoded(picture(1), "PNG")).decode()
    bad = "data:image/png;base64," + base64.b64encode(b"nothing").decode()
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": it}}]},
                {"role": "assistant", "content": "A."},
            ]
        }
        for it in (good, bad)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = check(
        tmp_path / "data.jsonl", [tmp_path], check_image=partial(check_image, decode=True)
    )
    assert [(finding.row, finding.code) for finding in found.findings] == [(2, "not-a-picture")]
    assert found.shapes == {"openai": 2}
