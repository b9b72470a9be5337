"""Data sets as people make them, drawn: for `bench/fuzz_check.py`, which breaks them further.

A draw is rows (of several shapes, their keys renamed, dropped, in capitals or nested, their texts
with what other makers put into them), written as a file (a list, lines, an object around them, CSV
of some separator, Parquet, an archive) in some encoding.
"""

from __future__ import annotations

import base64
import copy
import csv
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

Row = dict[str, Any]

TEXTS = (
    "What is it?",
    "A star.",
    "<image>\nWhat?",
    "Größe in cm",
    "猫 と 犬",
    "",
    " ",
    "None",
    "nan",
    "NA",
    "yes",
    "7",
    "B",
    "x\ud83d",
    "f\udcfcr",
    "a\x00b",
    "\x1b[2J",
    "\u202etxt",
    "y" * 5000,
    "[red]a[/red]",
    "<image><image>",
    "<img>a.jpg</img> What?",
    "<Image> What?",
    "<image_placeholder>",
    "<|image_1|>",
    "Picture 1: <img>a.jpg</img>",
    "<video>\nWhat?",
    "<audio>",
    "<|end|>",
    "<think>Hm.</think><answer>B</answer>",
    "\\boxed{7}",
    '\'["a", "b"]\'',
    '[{"from": "human", "value": "a"}]',
    "A. one\nB. two",
    "{image}",
    "![](a.jpg)",
    "<ImageHere>",
    "<s>[INST] a [/INST]",
)
NAMES = (
    "a.jpg",
    "A.JPG",
    "./a.jpg",
    "../a.jpg",
    "C:\\Users\\me\\a.jpg",
    "/data/coco/train2017/a.jpg",
    "~/a.jpg",
    "file:///x/a.jpg",
    "..\\img\\a.jpg",
    "a%2ejpg",
    "..",
    "/",
    "",
    " a.jpg",
    "x" * 300 + "/a.jpg",
    "https://x.org/a.jpg",
    "s3://x/a.jpg",
    "data:image/png;base64,AAAA",
    "a.jpg\x00",
    "000000000001.jpg",
    "f\udcfcr.jpg",
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    "a" * 5000,
    "//server/a.jpg",
    "....//a.jpg",
    "%2e%2e/a.jpg",
)
KEYS = (
    "image",
    "images",
    "file_name",
    "filename",
    "image_path",
    "img",
    "video",
    "videos",
    "audio",
    "audios",
    "question",
    "query",
    "instruction",
    "prompt",
    "input",
    "history",
    "system",
    "completion",
    "answer",
    "answers",
    "output",
    "response",
    "label",
    "caption",
    "text",
    "hint",
    "choices",
    "options",
    "A",
    "B",
    "weight",
    "id",
    "question_id",
    "source",
    "metadata",
    "from",
    "role",
    "value",
    "content",
    "",
    "\ud83d",
    "a\x1bb",
    "conversations",
    "messages",
    "texts",
    "tools",
    "chosen",
    "rejected",
    "category",
    "conversation",
    "dialog",
)
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    [None],
    [""],
    "",
    0,
    -1,
    1.5,
    True,
    [[]],
    {"bytes": 1},
    {"path": "a.jpg"},
    {"path": "../a.jpg", "bytes": None},
    ["a.jpg", 7],
    2**62,
    1e300,
    [[[[[]]]]],
    {"url": "a.jpg"},
    ["x", None],
    {"a": {"b": {"c": "d"}}},
    "1e999",
    ["a.jpg"] * 50,
)


def text(rng: random.Random) -> str:
    return rng.choice(TEXTS) if rng.random() < 0.5 else f"Word {rng.randrange(10**6)}"


def name(rng: random.Random) -> Any:
    return rng.choice(NAMES) if rng.random() < 0.5 else "a.jpg"


def _turns(rng: random.Random, role: str, content: str, roles: tuple[str, ...]) -> list[Row]:
    return [
        {
            role: (
                roles[at % 2]
                if rng.random() < 0.9
                else rng.choice((*roles, "system", "tool", "Human"))
            ),
            content: text(rng),
        }
        for at in range(rng.randint(1, 5))
    ]


def _parts(rng: random.Random) -> Row:
    picture = {
        "type": "image_url",
        "image_url": {
            "url": (
                "data:image/png;base64," + base64.b64encode(b"\x89PNG" + rng.randbytes(20)).decode()
            )
        },
    }
    parts = rng.choices(
        (
            {"type": "text", "text": text(rng)},
            {"type": "image"},
            picture,
            {"type": "video", "video": "a.mp4"},
            text(rng),
        ),
        k=2,
    )
    return {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": text(rng), "weight": rng.choice((0, 1))},
        ]
    }


SHAPES: tuple[Callable[[random.Random], Row], ...] = (
    lambda r: {
        "id": text(r),
        "image": name(r),
        "conversations": _turns(r, "from", "value", ("human", "gpt")),
    },
    lambda r: {
        "images": [name(r)],
        "messages": _turns(r, "role", "content", ("user", "assistant")),
    },
    _parts,
    lambda r: {"images": [name(r)], "texts": [{"user": text(r), "assistant": text(r)}]},
    lambda r: {"image": name(r), "question": text(r), "answer": text(r)},
    lambda r: {"file_name": name(r), "captions": [text(r), text(r)]},
    lambda r: {
        "question_id": r.randrange(99),
        "image": name(r),
        "text": text(r),
        "label": r.choice(("yes", "no")),
    },
    lambda r: {
        "instruction": text(r),
        "input": text(r),
        "output": text(r),
        "history": [[text(r), text(r)]],
        "system": text(r),
    },
    lambda r: {
        "question": text(r),
        "choices": [text(r) for _ in range(4)],
        "answer": r.choice((0, "B", text(r))),
    },
    lambda r: {
        "index": 1,
        "question": text(r),
        "A": text(r),
        "B": text(r),
        "C": None,
        "answer": "A",
        "image": name(r),
    },
    lambda r: {
        "prompt": [{"role": "user", "content": text(r)}],
        "completion": [{"role": "assistant", "content": text(r)}],
    },
)


def row(rng: random.Random) -> Any:
    """A row with up to three of its keys or values changed."""
    made: Any = rng.choice(SHAPES)(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        key = rng.choice(list(made) or [""])
        match rng.randrange(7):
            case 0:
                made.pop(key, None)
            case 1:
                made[rng.choice(KEYS)] = made.pop(key, None)
            case 2:
                made[key.upper() if rng.random() < 0.5 else key.capitalize()] = made.pop(key, None)
            case 3:
                made[key] = copy.deepcopy(rng.choice(ODD))
            case 4:
                made[rng.choice(KEYS)] = rng.choice(
                    (text(rng), copy.deepcopy(rng.choice(ODD)), name(rng))
                )
            case 5:
                made[key] = json.dumps(made.get(key))
            case _:
                made = {rng.choice(KEYS): made} if rng.random() < 0.2 else made
    return made if rng.random() < 0.98 else copy.deepcopy(rng.choice(ODD))


def good_file(rng: random.Random) -> tuple[str, bytes]:
    """The name that the file goes by, and its bytes."""
    rows = [row(rng) for _ in range(rng.choice((0, 1, 1, 2, 3, 6)))]
    kind = rng.choice((_json, _json, _json, _table, _table, _columns, _packed))
    return kind(rng, rows)


def _json(rng: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    ascii_ = rng.random() < 0.5
    indent = rng.choice((None, None, 1))
    told = [json.dumps(one, ensure_ascii=ascii_, indent=indent) for one in rows]
    match rng.randrange(6):
        case 0 | 1:
            made = json.dumps(rows, ensure_ascii=ascii_, indent=indent)
        case 2:
            made = "\n".join(json.dumps(one, ensure_ascii=ascii_) for one in rows)
        case 3:
            made = rng.choice(("\n", "", ",\n", " ")).join(told)
        case 4:
            key = rng.choice(
                rng.choice((("data", "rows", "train", "annotations", "conversations"), KEYS))
            )
            made = json.dumps(
                {
                    key: rows,
                    **(
                        {rng.choice(KEYS): rng.choice((rows, text(rng), 1))}
                        if rng.random() < 0.3
                        else {}
                    ),
                },
                indent=indent,
            )
        case _:
            made = json.dumps({str(i): one for i, one in enumerate(rows)}, indent=indent)
    return rng.choice(("a.json", "a.json", "a.jsonl", "a.txt")), _encoded(rng, made)


def _table(rng: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    separator, space = rng.choice((",", ";", "\t", "|", "^")), rng.choice(("", "", " "))
    mappings = [one for one in rows if isinstance(one, dict)]
    heading = list(dict.fromkeys(str(key) for one in mappings for key in one))
    heading += [rng.choice(("", *heading))] if heading and rng.random() < 0.1 else []
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=rng.choice(("\n", "\r\n", "\r")))
    writer.writerow([space + key for key in heading])
    for one in mappings:
        cells = [one.get(key) for key in heading]
        cells = [
            value if isinstance(value, str) else "" if value is None else json.dumps(value)
            for value in cells
        ]
        writer.writerow(
            [space + cell for cell in cells] + (["more"] if rng.random() < 0.03 else [])
        )
    before = f"sep={separator}\n" if rng.random() < 0.1 else ""
    return rng.choice(("a.csv", "a.csv", "a.tsv")), _encoded(rng, before + out.getvalue())


def _encoded(rng: random.Random, made: str) -> bytes:
    codec = rng.choice(
        (
            "utf-8",
            "utf-8",
            "utf-8",
            "utf-8-sig",
            "utf-16",
            "utf-16-le",
            "utf-16-be",
            "utf-32",
            "cp1252",
            "cp1251",
            "gb18030",
            "shift_jis",
        )
    )
    errors = (
        "surrogateescape"
        if codec.startswith(("utf-8", "cp")) and not any("\ud800" <= c < "\udc80" for c in made)
        else "replace"
    )
    try:
        return made.encode(codec, errors)
    except UnicodeEncodeError:
        return made.encode(codec, "replace")


def _columns(rng: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    return rng.choice(("a.parquet", "a.arrow", "a.json", "a.csv")), rng.choice(_kept())


@cache
def _kept() -> list[bytes]:
    """Some small Parquet and Arrow files, and none where pyarrow is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return [b"PAR1"]
    table = pa.Table.from_pylist(
        [
            {
                "id": str(i),
                "image": {"bytes": b"\x89PNG", "path": "a.png"},
                "question": "q",
                "answer": "a",
            }
            for i in range(3)
        ]
    )
    made = []
    for some in (table, table.slice(0, 0)):
        columns, stream, file = io.BytesIO(), io.BytesIO(), io.BytesIO()
        parquet.write_table(some, columns)
        for out, new in ((stream, pa.ipc.new_stream), (file, pa.ipc.new_file)):
            with new(out, some.schema) as writer:
                writer.write_table(some)
        made += [columns.getvalue(), stream.getvalue(), file.getvalue()]
    return made


def _packed(rng: random.Random, rows: list[Any]) -> tuple[str, bytes]:
    data = json.dumps(rows).encode()
    out = io.BytesIO()
    match rng.randrange(4):
        case 0:
            out.write(gzip.compress(data))
        case 1:
            with zipfile.ZipFile(out, "w") as pack:
                pack.writestr(
                    rng.choice(("set.json", "[Content_Types].xml", "model/data.pkl")), data
                )
        case 2:
            with tarfile.open(fileobj=out, mode="w") as tar:
                info = tarfile.TarInfo("0001.json")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        case _:
            head = rng.choice(
                (
                    b"\x89HDF\r\n\x1a\n",
                    b"\x80\x04\x95",
                    b"%PDF-1.7\n",
                    b"<!DOCTYPE html>",
                    b"SQLite format 3\x00",
                    b"\x93NUMPY",
                    b"ID3\x04\x00",
                )
            )
            out.write(head + rng.randbytes(64) + data)
    return rng.choice(("a.json", "a.jsonl", "a.csv", "a.gz", "a.parquet")), out.getvalue()
