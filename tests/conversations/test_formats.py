"""Every format that goes in, the canonical one that comes out, and where pictures are found."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phisense.conversations import IMAGE, ImageFinder, check, read_conversations
from phisense.conversations.convert import convert
from phisense.conversations.json_reader import json_rows
from phisense.conversations.sources import open_data_source
from phisense.errors import ArtifactError, ConversationError, ImageError
from phisense.vision.image_checks import check_image

QUESTION, ANSWER = "What is it?", "A red square."
LOOK = partial(check_image, decode=True)


def png(colour: str = "red") -> bytes:
    data = io.BytesIO()
    square = Image.new("RGB", (32, 24), "white")
    square.paste(colour, (8, 6, 24, 18))
    square.save(data, "PNG")
    return data.getvalue()


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def turns(
    who: tuple[str, str], keys: tuple[str, str], text: str = f"{IMAGE}\n{QUESTION}"
) -> list[dict[str, str]]:
    return [{keys[0]: who[0], keys[1]: text}, {keys[0]: who[1], keys[1]: ANSWER}]


def parquet(path: Path) -> Path:
    pa = pytest.importorskip(
        "pyarrow", reason="Parquet needs pyarrow: pip install 'phisense[data]'"
    )
    from pyarrow import parquet as pq

    rows = [
        {
            "images": [{"bytes": png(), "path": None}],
            "texts": [{"user": QUESTION, "assistant": ANSWER, "source": "x"}],
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def image_folder(folder: Path) -> Path:
    (folder / "metadata.csv").write_text(f"file_name,question,answer\na.png,{QUESTION},{ANSWER}\n")
    return folder


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
OPENAI = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": DATA_URL}},
            {"type": "text", "text": QUESTION},
        ],
    },
    {"role": "assistant", "content": ANSWER},
]
TRL = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]

#: What it is called, how it is written beside `a.png`, what the check calls file and rows.
FORMATS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "LLaVA-Instruct-150K": (
        lambda d: _json(
            d,
            [
                {
                    "id": "1",
                    "image": "a.png",
                    "conversations": turns(("human", "gpt"), ("from", "value")),
                }
            ],
        ),
        "JSON list",
        "llava",
    ),
    "LLaVA mix665k with a folder prefix": (
        lambda d: _json(
            d,
            [
                {
                    "id": "1",
                    "image": "coco/train2017/a.png",
                    "conversations": turns(("human", "gpt"), ("from", "value")),
                }
            ],
        ),
        "JSON list",
        "llava",
    ),
    "LLaMA-Factory sharegpt": (
        lambda d: lines(
            d / "x.jsonl",
            {"conversations": turns(("human", "gpt"), ("from", "value")), "images": ["a.png"]},
        ),
        "JSON lines",
        "sharegpt",
    ),
    "LLaMA-Factory messages": (
        lambda d: lines(
            d / "x.jsonl",
            {"messages": turns(("user", "assistant"), ("role", "content")), "images": ["a.png"]},
        ),
        "JSON lines",
        "messages",
    ),
    "TRL messages in parts": (
        lambda d: lines(d / "x.jsonl", {"messages": TRL, "images": ["a.png"]}),
        "JSON lines",
        "messages",
    ),
    "TRL prompt and completion": (
        lambda d: lines(
            d / "x.jsonl", {"prompt": TRL[:1], "completion": TRL[1:], "images": ["a.png"]}
        ),
        "JSON lines",
        "messages",
    ),
    "OpenAI with data URLs": (
        lambda d: lines(d / "x.jsonl", {"messages": OPENAI}),
        "JSON lines",
        "openai",
    ),
    "Cauldron": (
        lambda d: lines(
            d / "x.jsonl", {"images": ["a.png"], "texts": [{"user": QUESTION, "assistant": ANSWER}]}
        ),
        "JSON lines",
        "texts",
    ),
    "Cauldron in Parquet": (lambda d: parquet(d / "x.parquet"), "Parquet", "texts"),
    "image folder with CSV": (image_folder, "CSV", "pairs"),
    "image folder with JSONL": (
        lambda d: (
            lines(
                d / "metadata.jsonl", {"file_name": "a.png", "question": QUESTION, "answer": ANSWER}
            ).parent
        ),
        "JSON lines",
        "pairs",
    ),
}


def _json(folder: Path, rows: Any) -> Path:
    (folder / "x.json").write_text(json.dumps(rows))
    return folder / "x.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    return tmp_path / "in"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_said_and_converted_to_the_same(
    folder: Path, tmp_path: Path, name: str
) -> None:
    write, kind, shape = FORMATS[name]
    data = write(folder)
    found = check(data, [folder], check_image=LOOK)
    assert (found.kind, dict(found.shapes), found.good, found.rejects) == (kind, {shape: 1}, 1, [])
    counts = convert(data, tmp_path / "out", found, [folder])
    assert counts.to_dict() == {"rows": 1, "written": 1, "rejected": 0}
    [conversation] = read_conversations(tmp_path / "out")
    assert [(m.role, m.text) for m in conversation.messages] == [
        ("user", f"{IMAGE}\n{QUESTION}"),
        ("assistant", ANSWER),
    ]
    [picture] = conversation.images
    assert (tmp_path / "out" / picture).read_bytes() == png()
    again = check(tmp_path / "out", check_image=LOOK)
    assert (again.good, again.findings) == (1, [])


def test_captions_are_asked_for(folder: Path) -> None:
    [conversation] = read_conversations(
        lines(folder / "c.jsonl", {"image": "a.png", "caption": ANSWER})
    )
    assert (
        conversation.messages[0].text == f"{IMAGE}\nProvide a brief description of the given image."
    )
    assert conversation.messages[1].text == ANSWER


@pytest.mark.slow
def test_datasets_and_trl_open_what_convert_writes(folder: Path, tmp_path: Path) -> None:
    """As TRL's vision collator wants it: decoded pictures under `images`, parts under
    `messages`.
    """
    datasets = pytest.importorskip(
        "datasets", reason="this test needs datasets: pip install 'phisense[data]'"
    )
    (folder / "b.png").write_bytes(png("blue"))
    both = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}]
    data = lines(
        folder / "x.jsonl",
        {"id": "one", "messages": TRL, "images": ["a.png"]},
        {
            "id": "two",
            "messages": [{"role": "user", "content": both}, TRL[1]],
            "images": ["a.png", "b.png"],
        },
    )
    convert(data, tmp_path / "out", check(data, [folder], check_image=LOOK), [folder])
    rows = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "out"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert set(rows.column_names) == {"id", "messages", "images"}
    assert [len(row["images"]) for row in rows] == [1, 2]
    assert rows[1]["images"][1].convert("RGB").getpixel((10, 10)) == (0, 0, 255)
    assert [part["type"] for part in rows[1]["messages"][0]["content"]] == [
        "image",
        "image",
        "text",
    ]


def test_a_picture_inside_the_file_must_be_converted_first(folder: Path) -> None:
    with pytest.raises(
        ConversationError, match="holds its picture inside the file.*Run phisense convert"
    ):
        read_conversations(lines(folder / "x.jsonl", {"messages": OPENAI}))


def test_convert_leaves_rejected_rows_out_and_lists_them(folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": str(i),
            "image": f"{'a' if i != 1 else 'gone'}.png",
            "question": f"{i}?",
            "answer": "Yes.",
        }
        for i in range(3)
    ]
    data = lines(folder / "x.jsonl", *rows)
    counts = convert(data, tmp_path / "out", check(data, [folder], check_image=LOOK), [folder])
    assert counts.to_dict() == {"rows": 3, "written": 2, "rejected": 1}
    assert [c.id for c in read_conversations(tmp_path / "out")] == ["0", "2"]
    [told] = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert (told["row"], told["id"], told["code"]) == (2, "1", "missing-picture")


def test_a_convert_that_fails_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(folder / "x.jsonl", {"image": "a.png", "question": "?", "answer": "Yes."})
    checked = check(data, [folder], check_image=LOOK)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phisense.conversations.convert.os.link", full)
    monkeypatch.setattr("phisense.conversations.convert.shutil.copyfile", full)
    with pytest.raises(ArtifactError, match="cannot write .*No space left on device"):
        convert(data, tmp_path / "out", checked, [folder])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("written", "lies_at"),
    [
        ("000000033471.jpg", "000000033471.jpg"),
        ("000000033471.jpg", "train2017/000000033471.jpg"),
        ("000000033471.jpg", "COCO_train2014_000000033471.jpg"),
        ("000000033471.jpg", "train2014/COCO_train2014_000000033471.jpg"),
        ("COCO_val2014_000000033471.jpg", "val2017/000000033471.jpg"),
        ("coco/train2017/000000033471.jpg", "train2017/000000033471.jpg"),
        ("coco/train2017/000000033471.jpg", "000000033471.jpg"),
        ("gqa/images/1.jpg", "1.jpg"),
    ],
)
def test_pictures_are_found_in_the_usual_spellings(
    tmp_path: Path, written: str, lies_at: str
) -> None:
    path = tmp_path / "b" / lies_at
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "a").mkdir()
    pictures = ImageFinder([tmp_path / "a", tmp_path / "b"])
    assert pictures.path(written) == path
    assert pictures.find("000000000001.jpg") is None
    with pytest.raises(ImageError, match="there is no picture 2.jpg; got no such file in"):
        pictures.path("2.jpg")


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
def test_a_list_is_streamed_as_json_loads_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The slow twin: whatever the buffer holds at a time, rows are what `json.loads` makes of the
    whole text.
    """
    monkeypatch.setattr("phisense.conversations.json_reader.BLOCK_BYTES", block)
    rows = [
        {"id": 1, "t": 'é"\\n]} '},
        [1, -2.5e3, True],
        "x,]",
        {"deep": [{"a": {}}]},
        12345,
        None,
    ]
    for indent in (None, 2):
        (tmp_path / "x.json").write_text(
            json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8"
        )
        with (tmp_path / "x.json").open("rb") as file:
            assert [(value, fault) for _, value, fault in json_rows(file, listed=True)] == [
                (row, None) for row in rows
            ]


def test_folders_of_no_known_kind_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match="holds no data that is known here"):
        open_data_source(tmp_path)
    with pytest.raises(ConversationError, match="there is no data file"):
        open_data_source(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("file", "rows", "notes"),
    [
        ("instruct/qa.jsonl", 45, set()),
        ("instruct/captions.jsonl", 40, {"more-captions"}),
        ("pope/coco_pope_random.json", 3000, set()),
    ],
)
def test_real_sets_are_read_without_a_defect(
    fixtures: Path, file: str, rows: int, notes: set[str]
) -> None:
    found = check(fixtures / file)
    assert (found.rows, found.good, dict(found.shapes), found.rejects) == (
        rows,
        rows,
        {"pairs": rows},
        [],
    )
    assert {finding.code for finding in found.findings} - {"duplicate-id"} == notes
    assert len(read_conversations(fixtures / file)) == rows


def test_real_photographs_are_named_for_what_they_are(fixtures: Path) -> None:
    seen = {
        name: [code for code, _ in LOOK(fixtures / "images" / name, name)]
        for name in ("cmyk.jpg", "landscape_exif6.jpg", "truck.jpg")
    }
    assert seen == {"cmyk.jpg": ["cmyk"], "landscape_exif6.jpg": ["exif-rotation"], "truck.jpg": []}
