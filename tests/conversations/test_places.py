"""Where the picture of a name lies: paths of other machines are found by their tail, and nothing
outside the folders is ever opened.
"""

from __future__ import annotations

import json
import os
import random
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from phisense.conversations import ImageFinder, check, read_conversations
from phisense.conversations.convert import convert
from phisense.conversations.image_finder import normalize_image_name
from phisense.errors import ImageError
from phisense.vision.image_checks import check_image

LOOK = partial(check_image, decode=True)


def save(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 16), "white")
    picture.paste(colour, (0, 0, 16, 16))
    picture.save(path, "JPEG")
    return path


def rows(*names: str) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "image": name, "question": f"What is {i}?", "answer": "A star"}
        for i, name in enumerate(names)
    ]


#: Prefixes that a path of another machine has.
ELSEWHERE = (
    "",
    "./",
    "../",
    "../../x/",
    "/",
    "/data/coco/",
    "/home/me/pictures/",
    "//server/share/",
    "~/",
    "~/data/",
    "~me/data/",
    "C:\\",
    "C:/",
    "c:\\Users\\me\\data\\",
    "D:",
    "\\\\server\\share\\",
    ".\\",
    "..\\",
    "..\\..\\",
    "img\\",
    "file:///",
    "file:///data/",
    "file://localhost/data/",
    "file:/data/",
    "file:///C:/Users/me/",
    "FILE:///data/",
    "$HOME/data/",
    "%USERPROFILE%\\",
    "project/./images/",
    "a//b/",
    "x/y/../",
    "/content/drive/MyDrive/My Data/",
    "C:\\Program Files (x86)\\..\\data\\",
    " ",
    "\t",
)


@pytest.mark.parametrize("before", ELSEWHERE)
def test_a_path_of_another_machine_is_found_by_its_tail(tmp_path: Path, before: str) -> None:
    lies_at = save(tmp_path / "img" / "train" / "a b.jpg")
    pictures = ImageFinder([tmp_path / "img"])
    separator = "\\" if "\\" in before else "/"
    for tail in (
        "train/a b.jpg",
        "TRAIN/A B.JPG",
        "Train/a b.jpg",
        "train/a%20b.jpg",
        "train/A%20B.JPG",
        "train/a b.jpg ",
    ):
        name = before + tail.replace("/", separator)
        assert pictures.path(name) == lies_at, name
    save(tmp_path / "img" / "b.jpg")
    assert (
        pictures.path(f"{before}some{separator}where{separator}b.jpg") == tmp_path / "img" / "b.jpg"
    )


@pytest.mark.parametrize("name", ["café ñ 猫.jpg", "Ünïcödé.JPG", "한국어.jpg", "Å.jpg"])
def test_accents_are_found_in_both_ways_to_write_them(tmp_path: Path, name: str) -> None:
    for there in ("NFC", "NFD"):
        folder = tmp_path / there
        lies_at = save(folder / unicodedata.normalize(there, name))
        pictures = ImageFinder([folder])
        for written in ("NFC", "NFD"):
            asked = unicodedata.normalize(written, name)
            for spelled in (asked, quote(asked), asked.upper(), f"C:\\x\\{asked}"):
                assert pictures.path(spelled) == lies_at


def test_a_name_with_a_percent_sign_is_itself_first(tmp_path: Path) -> None:
    there = save(tmp_path / "a%20b.jpg")
    save(tmp_path / "a b.jpg")
    assert ImageFinder([tmp_path]).path("a%20b.jpg") == there


def test_the_longest_tail_is_the_one_that_is_meant(tmp_path: Path) -> None:
    """The folder's own name counts, so that two folders with like names in them are told apart."""
    one, two = save(tmp_path / "VG_100K" / "1.jpg"), save(tmp_path / "VG_100K_2" / "1.jpg")
    pictures = ImageFinder([one.parent, two.parent])
    assert pictures.path("vg/VG_100K/1.jpg") == one
    assert pictures.path("vg/VG_100K_2/1.jpg") == two
    assert pictures.path("C:\\vg\\vg_100k_2\\1.JPG") == two
    deep = save(tmp_path / "all" / "x" / "1.jpg")
    save(tmp_path / "all" / "1.jpg")
    assert ImageFinder([tmp_path / "all"]).path("/y/x/1.jpg") == deep
    assert ImageFinder([tmp_path / "VG_100K", tmp_path / "all"]).path("/y/x/1.jpg") == deep


def test_what_nothing_decides_is_named_with_both(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a" / "x.jpg"), save(tmp_path / "b" / "x.jpg", "blue")
    pictures = ImageFinder([tmp_path / "a", tmp_path / "b"])
    assert pictures.path("x.jpg") == one, "as it is written: the first folder has it"
    for name in ("/mnt/x.jpg", "C:\\x\\X.jpg", "c/X.JPG"):
        assert pictures.candidates(name) == [one, two]
        assert pictures.find(name) is None
        with pytest.raises(
            ImageError, match=r"may be several files; got '.*a/x.jpg' or '.*b/x.jpg'"
        ):
            pictures.path(name)
    assert pictures.path("somewhere/b/x.jpg") == two
    save(tmp_path / "a" / "X.jpg")
    assert len(ImageFinder(pictures.folders).candidates("x.JPG")) == 3
    (tmp_path / "data.json").write_text(json.dumps(rows("/mnt/x.jpg")))
    [finding] = check(
        tmp_path / "data.json", [tmp_path / "a", tmp_path / "b"], check_image=LOOK
    ).findings
    assert (finding.code, finding.rejects) == ("ambiguous-picture", True)


def test_the_same_file_twice_is_one(tmp_path: Path) -> None:
    lies_at = save(tmp_path / "a" / "x.jpg")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert (
        ImageFinder([tmp_path / "a", tmp_path / "a", tmp_path / "b"]).path("/mnt/x.jpg") == lies_at
    )


def test_a_link_inside_of_a_folder_is_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "coco").symlink_to(tmp_path / "elsewhere")
    assert ImageFinder([tmp_path / "img"]).path("coco/x.jpg") == tmp_path / "img" / "coco" / "x.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "//",
        "../..",
        "C:\\",
        "C:",
        "\\",
        "file://",
        "a/..",
        "a.jpg\0",
        "\0",
        "~/..",
    ],
)
def test_a_name_that_leads_to_no_file_is_none(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.jpg")
    assert normalize_image_name(name) is None
    assert ImageFinder([tmp_path]).candidates(name) == []


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "train/a.jpg",
        "a..b.jpg",
        "...jpg",
        "x/.hidden.jpg",
        "12:30.jpg",
        "a~.jpg",
        "猫/b.jpg",
        "~a.jpg",
    ],
)
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert normalize_image_name(name) == name


# security


#: Ways to write a path otherwise, which a reader may or may not see through.
DISGUISES: tuple[Callable[[str], str], ...] = (
    lambda n: n.replace("/", "\\"),
    lambda n: n.replace("../", "..\\"),
    lambda n: quote(n, safe=""),
    lambda n: quote(n),
    lambda n: n.replace("..", "%2e%2e"),
    lambda n: n.replace("/", "%2f"),
    lambda n: n.replace("/", "%5C"),
    lambda n: n.replace("/", "//"),
    lambda n: n.replace("../", "....//"),
    lambda n: n.replace("../", "..././"),
    lambda n: f"file://{n}",
    lambda n: f"file:///{n}",
    lambda n: f"~/{n}",
    lambda n: f"C:{n}",
    lambda n: f"C:\\{n}",
    lambda n: f"\\\\?\\{n}",
    lambda n: f"a.jpg/{n}",
    lambda n: n + "\0.jpg",
    lambda n: n.upper(),
    lambda n: f" {n}",
    lambda n: f"{n} ",
    lambda n: unicodedata.normalize("NFD", n),
    lambda n: n.replace(".", "\uff0e"),
    lambda n: n.replace("/", "\u2215"),
    lambda n: quote(quote(n)),
    lambda n: n.replace("..", ". ."),
    lambda n: f"{'x/' * 600}{n}",
    lambda n: f"{'x' * 300}/{n}",
    lambda n: f"sub/{n}",
    lambda n: n.replace("/", "/./"),
    lambda n: f"%00{n}",
    lambda n: f"{n}/.",
)


def spelled(draw: random.Random, target: Path, folder: Path) -> str:
    """Some way to write a path that could lead from the folder to the target."""
    relative = os.path.relpath(target, folder)
    name = draw.choice(
        (
            str(target),
            relative,
            f"x/{relative}",
            f"sub/../{relative}",
            f"sub/../../{folder.name}/{relative}",
            f"./{relative}",
        )
    )
    for disguise in draw.choices(DISGUISES, k=draw.choice((0, 1, 1, 2, 3))):
        name = disguise(name)
    return name


def test_no_name_opens_a_file_outside_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 spellings of a path to a canary beside and above the folder, its files opened by the
    check, by finding and by converting.
    """
    folder = tmp_path / "home" / "img"
    save(folder / "sub" / "a.jpg")
    canaries = [
        save(tmp_path / name)
        for name in ("canary.jpg", "home/Canary2.jpg", "home/imgs/canary3.jpg")
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    draw = random.Random(7)
    names = [spelled(draw, draw.choice(canaries), folder) for _ in range(2000)]
    assert len(set(names)) > 1000
    pictures = ImageFinder([folder])
    for name in names:
        for path in pictures.candidates(name):
            assert path.resolve().is_relative_to(folder.resolve()), name
        path = normalize_image_name(name)
        assert path is None or not (
            set(path.split("/")) & {"", ".", ".."}
            or path.startswith("/")
            or "\\" in path
            or "\0" in path
        ), name
    (tmp_path / "data.json").write_text(json.dumps(rows(*names)))
    found = check(tmp_path / "data.json", [folder], check_image=LOOK)
    assert found.good == 0
    assert set(found.counts) <= {"missing-picture", "path-escape", "remote-url"}


def test_the_control_a_canary_inside_is_found(tmp_path: Path) -> None:
    """The same generator, and the target in the folder: most spellings find it, so that they are no
    idle ones.
    """
    folder = tmp_path / "home" / "img"
    canary = save(folder / "canary.jpg")
    draw = random.Random(7)
    names = [spelled(draw, tmp_path / "canary.jpg", folder) for _ in range(500)]
    found = [ImageFinder([folder]).find(name) for name in names]
    assert found.count(canary) > 200


def test_the_control_joining_alone_would_open_it(tmp_path: Path) -> None:
    folder, canary = tmp_path / "img", save(tmp_path / "canary.jpg")
    folder.mkdir()
    draw = random.Random(7)
    names = [spelled(draw, canary, folder) for _ in range(500)]
    (folder / "sub").mkdir()
    opened = [
        name
        for name in names
        if "\0" not in name and len(name) < 200 and os.path.exists(os.path.join(folder, name))
    ]
    assert len(opened) > 50


def test_what_was_found_is_converted_under_a_safe_name_and_opened_again(tmp_path: Path) -> None:
    save(tmp_path / "img" / "train" / "a.jpg")
    names = [
        f"{before}train/a.jpg".replace("/", "\\" if "\\" in before else "/") for before in ELSEWHERE
    ]
    (tmp_path / "data.json").write_text(
        json.dumps(
            rows(
                *names,
                "TRAIN/A.JPG",
                "train/%61.jpg",
                "x" * 300 + "/train/a.jpg",
                "y/" * 900 + "a.jpg",
            )
        )
    )
    found = check(tmp_path / "data.json", [tmp_path / "img"], check_image=LOOK)
    lost = [one for one in found.rejects if one.row <= len(names) + 3]
    assert lost == []
    out = tmp_path / "out"
    counts = convert(tmp_path / "data.json", out, found, [tmp_path / "img"])
    assert counts.written == found.good
    written = [name for conversation in read_conversations(out) for name in conversation.images]
    assert all(
        (out / name).resolve().is_relative_to((out / "images").resolve()) for name in written
    )
    again = check(out, check_image=LOOK)
    assert again.rejects == []


def test_a_folder_is_listed_once_and_only_where_a_name_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        save(tmp_path / f"{i}.jpg")
    listed: list[str] = []
    scandir = os.scandir

    def counted(path: str) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr("phisense.conversations.image_finder.os.scandir", counted)
    pictures = ImageFinder([tmp_path])
    assert all(pictures.find(f"{i}.jpg") for i in range(20))
    assert listed == []
    assert all(pictures.find(f"{i}.JPG") for i in range(20))
    assert listed == [str(tmp_path)]


def found(folder: Path, data: Path, *names: str) -> list[tuple[int, str, int]]:
    data.write_text(json.dumps(rows(*names)))
    return [
        (one.row, one.code, one.rows) for one in check(data, [folder], check_image=LOOK).findings
    ]


def test_what_only_the_end_of_a_path_has_found_is_said_and_two_such_paths_of_one_file_are_refused(
    tmp_path: Path,
) -> None:
    """mix665k with one of its folders missing: the other has pictures of the same names, and they
    show something else.
    """
    there, data = tmp_path / "vg" / "VG_100K_2", tmp_path / "a.json"
    for name in ("1.jpg", "2.jpg"):
        save(there / name)
    assert (
        found(there, data, "VG_100K_2/1.jpg", "vg/VG_100K_2/2.jpg", "vg_100k_2/1.JPG", "2.jpg")
        == []
    ), "the folder's own name confirms it"
    assert found(there, data, "vg/VG_100K/1.jpg", "vg/VG_100K/2.jpg", "1.jpg") == [
        (1, "found-by-tail", 2)
    ]
    assert found(there, data, "dogs/1.jpg", "2.jpg", "cats/1.jpg") == [
        (1, "ambiguous-picture", 1),
        (3, "ambiguous-picture", 1),
    ]
    assert found(there, data, "/mnt/a/1.jpg", "C:\\b\\1.jpg", "1.jpg") == [
        (1, "found-by-tail", 2)
    ], "paths of two machines may be one picture"
    save(tmp_path / "train2014" / "COCO_train2014_000000033471.jpg")
    assert found(tmp_path / "train2014", data, "coco/train2017/000000033471.jpg") == [], (
        "COCO's numbers are of one picture each"
    )


def test_the_control_without_the_look_at_tails_another_picture_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "img" / "1.jpg")
    monkeypatch.setattr(
        sys.modules["phisense.conversations.check"]._CheckRun,
        "_note_tail_matches",
        lambda self, by_tail: None,
    )
    assert found(tmp_path / "img", tmp_path / "a.json", "dogs/1.jpg", "cats/1.jpg") == []
