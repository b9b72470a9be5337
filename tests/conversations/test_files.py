"""Files as people have them: separators, encodings, objects around the rows, files without a row.
Read as what is meant, or named.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import check, encodings, read_conversations, read_questions
from phisense.conversations.convert import convert
from phisense.conversations.sources import open_data_source
from phisense.errors import ConversationError, DataError
from phisense.evaluation import benchmark_io
from phisense.evaluation.predictions_io import read_answers
from phisense.evaluation.tasks import TASKS

HEADING = ["id", "question", "answer"]
CELLS = [
    ["1", "What is it?", "A star"],
    ["2", "How many?", "Two, or three; or 4"],
    ["3", "Größe?", "groß"],
]
WANTED = [
    {"id": "1", "question": "What is it?", "answer": "A star"},
    {"id": "2", "question": "How many?", "answer": "Two, or three; or 4"},
    {"id": "3", "question": "Größe?", "answer": "groß"},
]
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
CODECS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
)


def rows_of(path: Path) -> list[Any]:
    rows = list(open_data_source(path, announce=False).rows())
    assert [fault for _, _, fault in rows] == [None] * len(rows)
    return [row for _, row, _ in rows]


def table(separator: str, *, end: str = "\n", space: str = "", quote: bool = False) -> str:
    def cell(text: str) -> str:
        return (
            f'"{text}"' if quote or any(mark in text for mark in (separator, '"', "\n")) else text
        )

    return "".join((separator + space).join(map(cell, row)) + end for row in [HEADING, *CELLS])


@pytest.mark.parametrize(
    ("ending", "quote"), list(itertools.product(["csv", "tsv", "CSV", "tab"], [False, True]))
)
@pytest.mark.parametrize("separator", SEPARATORS)
def test_every_separator_under_every_ending(
    tmp_path: Path, separator: str, ending: str, quote: bool
) -> None:
    for end, space, codec in itertools.product(
        ("\n", "\r\n", "\r"), ("", " "), ("utf-8", "utf-8-sig", "utf-16", "cp1252")
    ):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(
            table(SEPARATORS[separator], end=end, space=space, quote=quote).encode(codec)
        )
        assert rows_of(path) == WANTED


@pytest.mark.parametrize("told", ["sep=;", "SEP=;", '"sep=;"', "sep=^", "sep=\t"])
def test_excels_first_line_names_the_separator(tmp_path: Path, told: str) -> None:
    separator = told.strip('"')[-1]
    (tmp_path / "a.csv").write_text(f"{told}\r\n" + table(separator, end="\r\n"), newline="")
    assert rows_of(tmp_path / "a.csv") == WANTED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "image^question^answer\na.jpg^What?^A\n",
            (
                r"has one column in its heading; got 'image\^question\^answer'; wanted columns"
                r" separated by"
            ),
        ),
        ("image question answer\na.jpg What? A\n", "has one column in its heading"),
        ('"image,question,answer"\n"a.jpg,What?,A"\n', "has one column in its heading"),
        ("This is no table at all.\nReally.\n", "has one column in its heading"),
        (
            "id,question,question,answer\n1,a,b,c\n",
            "has the column 'question' twice in its heading; got 4 columns separated by ','",
        ),
        ("id;question; question ;answer\n1;a;b;c\n", "has the column 'question' twice"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConversationError, match=words):
        check(tmp_path / "a.csv")


def test_one_column_with_a_name_is_read_and_its_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words\nOne\nTwo\n")
    assert [str(one) for one in check(tmp_path / "a.csv").findings] == [
        "row 1 has the keys words",
        "row 2 has the keys words",
    ]


def test_rows_that_are_not_rectangular_stay_defects_and_say_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;question;answer\n1;a;b\n2;a;b;c\n3;a\n4;a;b\n;;\n\n5;a;b\n")
    found = check(tmp_path / "a.csv")
    assert [str(one) for one in found.rejects] == [
        "row 2 has 4 cells, and the heading has 3 (separated by ';')",
        "row 3 has 2 cells, and the heading has 3 (separated by ';')",
    ]
    assert (found.rows, found.good) == (5, 3)


def test_a_heading_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    """As pandas writes its index."""
    (tmp_path / "a.csv").write_text(",question,answer\n0,a,b\n")
    assert rows_of(tmp_path / "a.csv") == [{"column 1": "0", "question": "a", "answer": "b"}]


def test_commas_inside_of_texts_do_not_mislead(tmp_path: Path) -> None:
    """Over drawn tables whose texts hold the other separators, the right one is found each time."""
    draw = random.Random(3)
    for name, separator in SEPARATORS.items():
        for _ in range(50):
            others = [mark for mark in SEPARATORS.values() if mark != separator]
            rows = [
                ["".join(draw.choices([*"abc ", *others], k=9)).strip() or "x" for _ in range(3)]
                for _ in range(draw.randint(1, 9))
            ]
            (tmp_path / "a.csv").write_text(
                "\n".join(separator.join(row) for row in [HEADING, *rows])
            )
            found = rows_of(tmp_path / "a.csv")
            assert [list(row.values()) for row in found] == [
                [cell.strip(" ") or None for cell in row] for row in rows
            ], name


# encodings


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "form", ["list", "lines", "indented list", "row", "indented row", "wrapped"]
)
def test_json_in_every_encoding(tmp_path: Path, codec: str, form: str) -> None:
    text = {
        "list": json.dumps(WANTED, ensure_ascii=False),
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in WANTED) + "\n",
        "indented list": json.dumps(WANTED, indent=1, ensure_ascii=False),
        "row": json.dumps(WANTED[2], ensure_ascii=False),
        "indented row": json.dumps(WANTED[2], indent=2, ensure_ascii=False),
        "wrapped": json.dumps({"data": WANTED}, ensure_ascii=False),
    }[form]
    (tmp_path / "a.json").write_bytes(text.encode(codec))
    assert rows_of(tmp_path / "a.json") == (WANTED[2:] if "row" in form else WANTED)
    found = check(tmp_path / "a.json")
    notes = [one.what for one in found.findings if one.code == "other-encoding"]
    assert notes == (
        [] if codec.startswith("utf-8") else [f"is {codec[:6].upper()}, and is read as that"]
    )
    document = benchmark_io.read_source(str(tmp_path / "a.json"), benchmark_io.HubDefaults("test"))
    key = "data" if form == "wrapped" else ""
    assert [row["answer"] for row in benchmark_io.rows_of(document, "x", key)] == [
        row["answer"] for row in (WANTED[2:] if "row" in form else WANTED)
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 2**20])
def test_recoded_is_what_python_decodes(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(encodings, "TRANSCODE_BLOCK_BYTES", block)
    text = "aé猫𝄞\n" * 50
    for codec in ("utf-16", "utf-16-be", "utf-32", "utf-32-le"):
        file = encodings.transcoded(io.BytesIO(text.encode(codec)), encodings.Encoding(codec))
        assert file.read().decode() == text
        file = encodings.transcoded(io.BytesIO(text.encode(codec)), encodings.Encoding(codec))
        assert b"".join(iter(file.readline, b"")).decode() == text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_cut_or_damaged_text_is_a_defect_of_its_row(tmp_path: Path, codec: str) -> None:
    good = json.dumps(WANTED[0]).encode(codec)
    half = "x".encode(codec).replace(b"x", b"x") + "\ud83d".encode(codec, "surrogatepass")
    broken = good.replace("What".encode(codec), "W".encode(codec) + half)
    end = "\n".encode(codec)
    (tmp_path / "a.jsonl").write_bytes(good + end + broken + end + good[:-1])
    found = check(tmp_path / "a.jsonl")
    assert [(one.row, one.code) for one in found.rejects] == [(2, "not-utf8"), (3, "not-utf8")]


WESTERN = [
    "Größe",
    "café",
    "naïve façade",
    "„Spaß“ – ‚gut‘",
    "España ¿Qué?",
    "5 €",
    "ÅÄÖ",
    "garçon…",
    "straße",
]
FOREIGN = {
    "cp1251": "привет мир",
    "gb18030": "什么颜色的猫",
    "shift_jis": "これは猫です",
    "cp1253": "καλημέρα",
    "cp949": "고양이입니다",
}


def test_a_western_table_is_read_and_said(tmp_path: Path) -> None:
    for words in WESTERN:
        text = f"question,answer\nWhat does it say in Größe and été?,{words}\n"
        (tmp_path / "a.csv").write_bytes(text.encode("cp1252"))
        found = check(tmp_path / "a.csv")
        [note] = [one for one in found.findings if one.code == "other-encoding"]
        assert (note.row, note.rejects, found.good) == (0, False, 1)
        assert (
            str(note)
            == "the file is no UTF-8 and is read as cp1252, the Western encoding of Windows:"
            " 'Größe', for one"
        )
        assert read_conversations(tmp_path / "a.csv")[0].messages[1].text == words


@pytest.mark.parametrize("codec", FOREIGN)
def test_a_table_in_an_encoding_that_cannot_be_told_is_not_read_as_western(
    tmp_path: Path, codec: str
) -> None:
    (tmp_path / "a.csv").write_bytes(
        f"question,answer\nWhat?,{FOREIGN[codec]}\nWho?,Me\n".encode(codec)
    )
    found = check(tmp_path / "a.csv")
    assert [(one.row, one.code) for one in found.findings] == [(1, "not-utf8")]
    assert found.good == 1


def test_a_damaged_row_of_a_table_in_utf8_costs_that_row(tmp_path: Path) -> None:
    """And the others are not made something else by it."""
    rows = ["Größe?,groß", "été?,oui", "猫?,はい", "Was?,ja"]
    data = ("question,answer\n" + "\n".join(rows * 3) + "\n").encode() + b"caf\xe9?,x\n"
    (tmp_path / "a.csv").write_bytes(data)
    found = check(tmp_path / "a.csv")
    assert [str(one) for one in found.rejects] == [
        "row 13 is not UTF-8: 'question' holds the byte 0xe9"
    ]
    assert rows_of_good(tmp_path / "a.csv")[0] == {"question": "Größe?", "answer": "groß"}


def rows_of_good(path: Path) -> list[Any]:
    return [row for _, row, fault in open_data_source(path, announce=False).rows() if fault is None]


@pytest.mark.parametrize("form", ["list", "lines", "objects"])
def test_json_that_is_no_utf8_is_a_defect_row_by_row(tmp_path: Path, form: str) -> None:
    """JSON is UTF-8 by its own standard: other bytes are not guessed at."""
    rows = [
        {"id": str(i), "question": f"Was {i}?", "answer": "gro\xdf" if i in (1, 3) else "klein"}
        for i in range(5)
    ]
    told = [
        json.dumps(row, ensure_ascii=False, indent=1 if form == "objects" else None) for row in rows
    ]
    text = {
        "list": "[" + ",\n".join(told) + "]",
        "lines": "\n".join(told),
        "objects": "\n".join(told),
    }[form]
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    found = check(tmp_path / "a.json")
    assert [(one.row, one.code) for one in found.findings] == [(2, "not-utf8"), (4, "not-utf8")]
    assert all("0xdf" in one.what for one in found.findings)
    assert (found.rows, found.good) == (5, 3)


def test_a_note_of_the_file_is_said_once_where_nobody_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes("question_id,answer\n1,groß\n".encode("cp1252"))
    question = benchmark_io.Question("1", None, "Was?", ("groß",), "other")
    for _ in range(3):
        assert read_answers(tmp_path / "a.csv", TASKS["own"], [question]).answers == ["groß"]
    assert capsys.readouterr().err.count("is no UTF-8 and is read as cp1252") == 1


# an object around the rows

QA = [{"question": "What?", "answer": "A star"}, {"question": "Who?", "answer": "Me"}]
LLAVA = [
    {
        "id": str(i),
        "conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "Yes."}],
    }
    for i in range(3)
]
MESSAGES = [
    {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
]
WRAPPED = ("data", "rows", "train", "annotations", "conversations", "questions", "anything at all")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", WRAPPED)
@pytest.mark.parametrize("rows", [QA, LLAVA, MESSAGES], ids=["pairs", "llava", "messages"])
def test_rows_inside_of_an_object(
    tmp_path: Path, rows: list[Any], key: str, indent: int | None
) -> None:
    of_the_set = {
        "dataset_id": "d1",
        "licenseText": "MIT",
        "data_set_id": 3,
        "sourceId": "s",
        "plaintexts": 1,
    }
    for beside in (
        {},
        {"version": 2},
        {"info": {"year": 2024}, "licence": "none", "splits": ["a"]},
        of_the_set,
    ):
        (tmp_path / "a.json").write_text(json.dumps({**beside, key: rows}, indent=indent))
        assert rows_of(tmp_path / "a.json") == rows
        found = check(tmp_path / "a.json")
        [note] = [one for one in found.findings if one.code == "wrapped"]
        assert str(note).startswith(f"the file is an object that holds its rows under {key!r}")
        assert all(repr(other) in note.what for other in beside)
        assert (found.good, found.kind) == (len(rows), "JSON object")


def test_rows_inside_of_objects_inside_of_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"dataset": {"rows": QA, "n": 2}}))
    assert rows_of(tmp_path / "a.json") == QA
    [note] = check(tmp_path / "a.json").findings
    assert (
        str(note)
        == "the file is an object that holds its rows under 'rows'; 'n' beside them is not read"
        " (inside of 'dataset')"
    )


@pytest.mark.parametrize("key", ["context", "@context"])
def test_a_context_is_of_a_file_of_rows_or_of_its_questions(tmp_path: Path, key: str) -> None:
    for name in ("data", "rows", "train"):
        (tmp_path / "a.json").write_text(json.dumps({key: "https://schema.org", name: QA}))
        assert rows_of(tmp_path / "a.json") == QA
    for name in ("qas", "questions", "annotations"):
        (tmp_path / "a.json").write_text(json.dumps({key: "A star is on the left.", name: QA}))
        assert rows_of(tmp_path / "a.json") == [{key: "A star is on the left.", name: QA}]


#: One row each, whose lists are its own.
ROWS = [
    *(
        {key: "7", "data": QA}
        for key in (
            "id",
            "ID",
            "image_id",
            "imageId",
            "question-id",
            "sampleid",
            "file_name",
            "fileName",
        )
    ),
    *QA,
    *LLAVA,
    *MESSAGES,
    {"id": 1, "image": "a.jpg", "qa": QA},
    {"image": "a.jpg", "questions": QA},
    {"images": ["a.jpg"], "data": QA},
    {"question_id": 1, "question": "?", "answers": [{"answer": "yes", "answer_id": 1}] * 10},
    {"id": "x", "words": "no"},
    {"images": ["a.jpg"], "texts": [{"user": "a", "assistant": "b"}]},
    {"question": "What?", "choices": [{"text": "a"}], "answer": "a"},
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_an_object_that_is_a_row_is_one_row(tmp_path: Path, row: Any, indent: int | None) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps(row, indent=indent))
        assert rows_of(tmp_path / name) == [row]


def test_a_line_of_json_lines_is_a_row_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"data": QA}))
    assert rows_of(tmp_path / "a.jsonl") == [{"data": QA}]


def test_several_lists_of_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": LLAVA, "test": QA}))
    with pytest.raises(
        ConversationError,
        match=r"holds several lists of rows; got 'train' \(3 rows\), 'test' \(2 rows\); wanted one",
    ):
        check(tmp_path / "a.json")


def test_an_object_without_rows_is_named_by_its_keys(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "categories": [{"id": 1, "name": "x"}], "info": {}})
    )
    assert "row 1 has the keys categories, images, info" in map(
        str, check(tmp_path / "a.json").rejects
    )


def test_a_mapping_of_rows_has_its_keys_as_ids(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"17": QA[0], "18": {**QA[1], "id": "own"}}))
    assert rows_of(tmp_path / "a.json") == [{**QA[0], "id": "17"}, {**QA[1], "id": "own"}]
    assert [one.code for one in check(tmp_path / "a.json").findings] == ["wrapped"]


@pytest.mark.parametrize("between", ["\n", "\n\n", " ", ",\n", ""])
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_that_follow_each_other_without_a_list(
    tmp_path: Path, between: str, indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(between.join(json.dumps(row, indent=indent) for row in LLAVA))
    assert rows_of(tmp_path / "a.json") == LLAVA


def test_a_broken_object_names_its_place(tmp_path: Path) -> None:
    text = json.dumps(LLAVA[0], indent=1).replace('"value": "0?"', '"value" "0?"')
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    [finding] = check(tmp_path / "a.json").findings
    assert f"line {theirs.value.lineno} column {theirs.value.colno}" in finding.what


def test_a_broken_first_line_costs_one_row(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in LLAVA]
    for broken in (lines[0][:-5], lines[0][:-1] + "oops}", '{"id": 1', "{"):
        (tmp_path / "a.jsonl").write_text("\n".join([broken, *lines[1:]]))
        found = check(tmp_path / "a.jsonl")
        if broken != "{":  # which may be an object over several lines
            assert [(one.row, one.code) for one in found.findings] == [(1, "malformed-json")]
            assert found.good == 2


def test_lists_in_a_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([LLAVA, LLAVA]))
    assert [str(one) for one in check(tmp_path / "a.json").findings] == [
        f"row {n} is a list, wanted a mapping" for n in (1, 2)
    ]


def test_an_object_too_large_to_be_read_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": LLAVA}))
    monkeypatch.setattr("phisense.safe_parsing.MAX_JSON_BYTES", 100)
    with pytest.raises(ConversationError, match="is one JSON object, too large to be read whole"):
        check(tmp_path / "a.json")


# nothing


def empties(folder: Path) -> list[Path]:
    texts = {
        "empty.json": "",
        "space.json": " \n\t\n",
        "list.json": "[]",
        "list2.json": " [ ]\n",
        "empty.jsonl": "",
        "lines.jsonl": "\n\n\n",
        "empty.csv": "",
        "heading.csv": "id,question,answer\n",
        "blank.csv": "id,question,answer\n\n,,\n",
        "lines.csv": "\n\n",
        "empty.tsv": "",
        "mark.json": "\ufeff",
        "mark.csv": "\ufeff",
        "sep.csv": "sep=;\n",
        "empty": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    paths = [folder / name for name in texts]
    (folder / "folder").mkdir()
    (folder / "folder" / "metadata.jsonl").write_text("\n")
    (folder / "utf16.json").write_bytes("[]".encode("utf-16"))
    return [*paths, folder / "folder", folder / "utf16.json"]


def test_a_file_without_a_row_is_an_error_of_every_reader(tmp_path: Path, verb: Any) -> None:
    for path in empties(tmp_path):
        for read in (
            check,
            read_conversations,
            read_questions,
            lambda path: read_answers(path, TASKS["own"], []),
        ):
            with pytest.raises(DataError, match="holds no row"):
                read(path)
    for path in empties_again(tmp_path):
        for words in (
            ("check", path),
            ("convert", path, "--out", tmp_path / "out"),
            ("check", path, "--json"),
        ):
            with pytest.raises(DataError, match="holds no row") as caught:
                verb(*words)
            assert caught.value.exit_code == 1
        assert not (tmp_path / "out").exists()


def empties_again(folder: Path) -> list[Path]:
    return [folder / "list.json", folder / "empty.jsonl", folder / "heading.csv"]


def test_an_empty_table_of_columns_holds_no_row(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    none = pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())})
    parquet.write_table(none, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, none.schema) as writer,
    ):
        writer.write_table(none)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(ConversationError, match="holds no row"):
            check(tmp_path / name)


def test_the_control_one_row_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nWhat?,A star\n")
    found = check(tmp_path / "a.csv")
    assert found.good == 1
    assert convert(tmp_path / "a.csv", tmp_path / "out", found).written == 1
