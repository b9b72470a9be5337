"""No key is taken as absent: whatever is dropped, renamed or moved in a row of any shape, nothing
that it says is lost unseen.
"""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phisense.conversations import (
    IMAGE,
    Conversation,
    check,
    keys,
    read_conversations,
    read_questions,
)
from phisense.conversations.convert import convert
from phisense.conversations.grouped_fields import GroupedFields
from phisense.conversations.keys import IGNORED_GROUP, PART_KEYS, ROW_KEYS, TURN_KEYS
from phisense.conversations.rows import Row, validate_row
from phisense.safe_parsing import quote

Path_ = tuple[str | int, ...]

DATA_URL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4AdMOEQH6QS"
    "AM1BAQ/oQeJvAAAAAElFTkSuQmCC"
)
ASKED, TOLD = f"{IMAGE}\nWhich thing is at the top?", "A red star."

#: One good row of each shape. Every text in it is unlike every other, so that none can stand for
#: another.
SAMPLES: dict[str, dict[str, Any]] = {
    "llava": {
        "id": "7",
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}],
    },
    "sharegpt": {
        "images": ["a.jpg", "b.jpg"],
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": f"{IMAGE}{IMAGE}\nWhat differs?"},
            {"from": "gpt", "value": "The colour."},
            {"from": "human", "value": "How?"},
            {"from": "gpt", "value": "One is blue.", "weight": 0},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes indeed."},
        ],
    },
    "messages": {
        "messages": [
            {"role": "system", "content": "Name things."},
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": TOLD},
        ],
        "images": ["a.jpg"],
    },
    "parts": {
        "id": "p",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "path": "a.jpg"},
                    {"type": "text", "text": "Which shape?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": TOLD}]},
        ],
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": DATA_URL}},
                    {"type": "text", "text": "Which one?"},
                ],
            },
            {"role": "assistant", "content": "A boat.", "weight": 0},
            {"role": "user", "content": "Look again."},
            {"role": "assistant", "content": "A square.", "weight": 1},
        ]
    },
    "pictures of turns": {
        "messages": [
            {"role": "user", "content": "What is this?", "images": ["a.jpg"]},
            {"role": "assistant", "content": "A ring."},
            {"role": "user", "content": "And that?", "images": ["b.jpg"]},
            {"role": "assistant", "content": "A heart."},
        ]
    },
    "prompt of turns": {
        "prompt": [{"role": "user", "content": ASKED}],
        "completion": [{"role": "assistant", "content": TOLD}],
        "images": ["a.jpg"],
    },
    "prompt of text": {"prompt": "Which colour has it?", "completion": "Violet.", "image": "a.jpg"},
    "texts": {
        "images": ["a.jpg"],
        "texts": [
            {"user": "What is it?", "assistant": "A cross.", "source": "x"},
            {"user": "Is it big?", "assistant": "It is small."},
        ],
    },
    "pairs": {"file_name": "a.jpg", "question": "How many?", "answer": "Three of them."},
    "alpaca": {
        "images": ["a.jpg"],
        "system": "Answer in a word.",
        "instruction": f"{IMAGE}\nAnswer the question about the picture.",
        "input": "What colour is the star?",
        "output": "Red.",
        "history": [["What is at the left?", "A tree."]],
    },
    "captions": {"image": "a.jpg", "caption": "Two boats on a lake."},
    "pope": {"question_id": 3, "image": "a.jpg", "text": "Is there a dog?", "label": "no"},
    "scienceqa": {
        "image": "a.jpg",
        "question": "Which is farthest north?",
        "choices": ["Peru", "Norway", "Chad"],
        "answer": 1,
        "hint": "North is up.",
        "grade": "grade2",
    },
    "mmbench": {
        "index": 4,
        "image": "a.jpg",
        "question": "Which shape?",
        "hint": "Count the corners.",
        "A": "star",
        "B": "ring",
        "C": "cross",
        "answer": "B",
        "category": "shape",
    },
    "mmmu": {
        "id": "m",
        "question": f"Is {IMAGE} older than {IMAGE}?",
        "image_1": "a.jpg",
        "image_2": "b.jpg",
        "answer": "Neither.",
    },
}


@dataclass(frozen=True)
class Outcome:
    """What the check says of one row alone, and the conversation if there is one."""

    rejected: bool
    findings: tuple[str, ...]
    conversation: Conversation | None

    @property
    def meaning(self) -> Any:
        """All of a conversation but its id."""
        return self.conversation and (self.conversation.messages, self.conversation.images)


def outcome(row: dict[str, Any], folder: Path) -> Outcome:
    (folder / "rows.jsonl").write_text(json.dumps(row))
    found = check(folder / "rows.jsonl")
    examined: Row = validate_row(row, 1)
    said = tuple(f"{finding.code}: {finding.what}" for finding in found.findings)
    return Outcome(bool(found.rejected), said, examined.conversation() if examined.good else None)


def places(tree: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every key of every mapping in a row; not those of `{"url": ...}`, which is a value."""
    for step, inner in (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    ):
        if isinstance(step, str) and step != "url":
            yield (*at, step)
        yield from places(inner, (*at, step))


def mapping_at(row: dict[str, Any], at: Path_) -> Any:
    here: Any = row
    for step in at:
        here = here[step]
    return here


def texts_of(value: Any) -> set[str]:
    """Every text in a value; of numbers their text."""
    if isinstance(value, dict):
        return {text for inner in value.values() for text in texts_of(inner)}
    if isinstance(value, list):
        return {text for inner in value for text in texts_of(inner)}
    return {str(value)}


CASES = [(name, at) for name, sample in SAMPLES.items() for at in places(sample)]
IDS = [f"{name}-{'.'.join(map(str, at))}" for name, at in CASES]
#: What needs not stand in a conversation: roles, kinds, ids, and those keys of the samples that are
#: about the row. Written out, for a table that held too much would exempt itself. An answer may be
#: a number that chooses where there are options.
_STRUCTURE = {
    "from",
    "role",
    "type",
    "id",
    "question_id",
    "weight",
    "index",
    "grade",
    "category",
    "source",
}
_OFFERS = {"choices", "options", "A", "B"}


def lost(row: Any, came: Outcome) -> set[str]:
    """Texts of a good row that stand nowhere in its conversation, and under a key that no finding
    names.
    """
    assert came.conversation is not None
    held = "\n".join(
        [*(message.text for message in came.conversation.messages), *came.conversation.images]
    )
    gone = set()

    def walk(tree: Any, named: bool) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                if key not in _STRUCTURE and not (key == "answer" and _OFFERS & tree.keys()):
                    walk(value, named or any(quote(key) in said for said in came.findings))
        elif isinstance(tree, list):
            for value in tree:
                walk(value, named)
        elif (
            not named
            and not str(tree).startswith("data:")
            and any(one.strip() not in held for one in str(tree).split(IMAGE))
        ):
            gone.add(str(tree))

    walk(row, False)
    return gone


def is_silent(changed: dict[str, Any], original: Outcome, key: str, folder: Path) -> bool:
    """Whether a changed row comes to something else, and nobody says so."""
    came = outcome(changed, folder)
    if came.rejected or any(quote(key) in said for said in came.findings):
        return False
    return came.meaning != original.meaning


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_good_and_nothing_in_it_is_unread(tmp_path: Path, name: str) -> None:
    came = outcome(SAMPLES[name], tmp_path)
    assert not came.rejected
    assert [said for said in came.findings if not said.startswith("options-added")] == []
    assert lost(SAMPLES[name], came) == set()


@pytest.mark.parametrize(("name", "at"), CASES, ids=IDS)
def test_a_key_that_is_dropped_takes_with_it_only_what_it_said(
    tmp_path: Path, name: str, at: Path_
) -> None:
    """A row without a key is a row of its own, which nothing can tell from one that never had it:
    so it is read whole, or rejected.
    """
    changed = copy.deepcopy(SAMPLES[name])
    del mapping_at(changed, at[:-1])[at[-1]]
    came = outcome(changed, tmp_path)
    assert came.rejected or lost(changed, came) == set()


@pytest.mark.parametrize(("name", "at"), CASES, ids=IDS)
def test_a_key_that_is_renamed_is_never_missed_in_silence(
    tmp_path: Path, name: str, at: Path_
) -> None:
    original = outcome(SAMPLES[name], tmp_path)
    changed = copy.deepcopy(SAMPLES[name])
    here = mapping_at(changed, at[:-1])
    new = f"zq{at[-1]}x"
    renamed = {(new if key == at[-1] else key): value for key, value in here.items()}
    here.clear()
    here.update(renamed)
    assert not is_silent(changed, original, new, tmp_path)


def levels(row: dict[str, Any]) -> list[Path_]:
    """The mappings of a row to which a key can be moved: itself, its first and last turn or pair,
    and the first part.
    """
    found: list[Path_] = [()]
    for key in ("conversations", "messages", "texts", "prompt", "completion"):
        if isinstance(row.get(key), list):
            found += [(key, 0), (key, len(row[key]) - 1)]
            if isinstance(row[key][0].get("content"), list):
                found.append((key, 0, "content", 0))
    return found


@pytest.mark.parametrize(("name", "at"), CASES, ids=IDS)
def test_a_key_that_is_moved_is_never_missed_in_silence(
    tmp_path: Path, name: str, at: Path_
) -> None:
    original = outcome(SAMPLES[name], tmp_path)
    for level in levels(SAMPLES[name]):
        if level == at[:-1] or level[: len(at)] == at:
            continue
        changed = copy.deepcopy(SAMPLES[name])
        value = mapping_at(changed, at[:-1]).pop(at[-1])
        target = mapping_at(changed, level)
        if at[-1] not in target:
            target[str(at[-1])] = value
            silent = is_silent(changed, original, str(at[-1]), tmp_path)
            # another turn has it now, and that is what is read
            if silent and level and at[-1] in (*keys.IMAGE_KEYS, "weight"):
                came = outcome(changed, tmp_path)
                assert came.conversation is not None
                before = original.conversation
                shift = len(came.conversation.messages) - len(SAMPLES[name].get(str(level[0]), ()))
                assert before is not None
                assert lost(changed, came) == set()
                assert came.conversation.images == before.images
                if at[-1] == "weight":
                    assert not came.conversation.messages[shift + int(level[1])].supervised
                continue
            assert not silent, level


@pytest.mark.slow
def test_the_control_without_the_guard_rows_lose_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupedFields, "unused", lambda self: [])
    monkeypatch.setattr(GroupedFields, "take_unsupported", lambda self: [])
    tripped = 0
    for name, at in CASES:
        original = outcome(SAMPLES[name], tmp_path)
        changed = copy.deepcopy(SAMPLES[name])
        here = mapping_at(changed, at[:-1])
        here["zqx"] = here.pop(at[-1])
        tripped += is_silent(changed, original, "zqx", tmp_path)
    assert tripped >= 8
    assert validate_row({**SAMPLES["llava"], "video": "a.mp4"}, 1).good


ALIASES = [
    (name, key, other)
    for name, sample in SAMPLES.items()
    for key in sample
    for group, others in ROW_KEYS.items()
    if key in others and group not in (IGNORED_GROUP, "id")
    for other in others
    if other != key
]


@pytest.mark.parametrize(("name", "key", "other"), ALIASES)
def test_every_other_name_of_a_key_says_the_same(
    tmp_path: Path, name: str, key: str, other: str
) -> None:
    changed = {(other if name == key else name): value for name, value in SAMPLES[name].items()}
    came = outcome(changed, tmp_path)
    assert came.meaning == outcome(SAMPLES[name], tmp_path).meaning, came.findings


@pytest.mark.parametrize(
    "spelled",
    [
        str.upper,
        str.title,
        " {} ".format,
        lambda key: key.replace("_", "-"),
        lambda key: key.replace("_", " "),
    ],
)
@pytest.mark.parametrize("name", SAMPLES)
def test_keys_are_known_in_any_case_and_with_spaces(
    tmp_path: Path, name: str, spelled: Any
) -> None:
    def respell(tree: Any) -> Any:
        if isinstance(tree, dict) and "url" not in tree:
            return {spelled(key): respell(value) for key, value in tree.items()}
        return [respell(one) for one in tree] if isinstance(tree, list) else tree

    assert (
        outcome(respell(SAMPLES[name]), tmp_path).meaning
        == outcome(SAMPLES[name], tmp_path).meaning
    )


@pytest.mark.parametrize("name", ["llava", "messages", "pairs", "texts", "alpaca", "scienceqa"])
def test_two_spellings_of_a_key_with_two_values_are_refused_and_with_one_value_are_one(
    tmp_path: Path, name: str
) -> None:
    for key, value in SAMPLES[name].items():
        if key in ("id", *ROW_KEYS[IGNORED_GROUP]):
            continue
        same = outcome({**SAMPLES[name], key.title(): value}, tmp_path)
        assert same.meaning == outcome(SAMPLES[name], tmp_path).meaning, (key, same.findings)
        other = outcome(
            {**SAMPLES[name], key.title(): ["b.jpg"] if key in keys.IMAGE_KEYS else "Other words"},
            tmp_path,
        )
        assert other.rejected or any(quote(key.title()) in said for said in other.findings), key


@pytest.mark.parametrize("key", sorted(keys._WHAT))
def test_what_is_not_trained_on_is_refused_at_every_level(tmp_path: Path, key: str) -> None:
    for name in ("llava", "parts", "texts", "pairs", "captions"):
        for level in levels(SAMPLES[name]):
            changed = copy.deepcopy(SAMPLES[name])
            mapping_at(changed, level)[key] = "x.bin"
            came = outcome(changed, tmp_path)
            assert any(
                said.startswith("unsupported-key") and quote(key) in said for said in came.findings
            ), (name, level)
            mapping_at(changed, level)[key] = None
            assert outcome(changed, tmp_path) == outcome(SAMPLES[name], tmp_path), "null is nothing"


def test_what_says_nothing_is_no_note(tmp_path: Path) -> None:
    for name, sample in SAMPLES.items():
        row = {**dict.fromkeys(ROW_KEYS[IGNORED_GROUP], "x"), **copy.deepcopy(sample)}
        for level, groups in (
            (("messages", 0), TURN_KEYS),
            (("messages", 0, "content", 0), PART_KEYS),
        ):
            if name == "parts":
                mapping_at(row, level).update(dict.fromkeys(groups[IGNORED_GROUP], 1))
        assert outcome(row, tmp_path).findings == outcome(sample, tmp_path).findings


@pytest.mark.parametrize("key", [*ROW_KEYS[IGNORED_GROUP], *keys.IMAGE_ID_KEYS])
def test_what_says_nothing_is_said_if_it_alone_names_a_picture(tmp_path: Path, key: str) -> None:
    pair = {"question": "How many?", "answer": "Three."}
    talk = {
        "conversations": [
            {"from": "human", "value": "How many?"},
            {"from": "gpt", "value": "Three."},
        ]
    }
    for row in (pair, talk):
        for value in ("dir/z.JPG", {"image": "z.jpg"}, '{"image": "z.jpg"}', ["z.png"]):
            came = outcome({**row, key: value}, tmp_path)
            used = came.conversation is not None and came.conversation.images == (value,)
            assert (
                used
                if key in keys.IMAGE_ID_KEYS and isinstance(value, str) and value[0] == "d"
                else f"unread-key: has {quote(key)}" in " ".join(came.findings)
            ), (value, came)
            assert outcome({**row, "image": "a.jpg", key: value}, tmp_path) == outcome(
                {**row, "image": "a.jpg"}, tmp_path
            )
        assert (outcome({**row, key: "train"}, tmp_path).findings == ()) == (
            key not in keys.IMAGE_ID_KEYS
        )


def test_the_ids_of_coco_are_not_missed_in_silence(tmp_path: Path) -> None:
    rows = [{"image_id": 5, "question": f"How many {i}?", "answer": "Three."} for i in range(3)]
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": [{"id": 5, "file_name": "a.jpg"}], "annotations": rows})
    )
    said = {str(one) for one in check(tmp_path / "coco.json").findings}
    assert any("'image_id', which is not read" in one for one in said), said


def test_a_row_with_a_picture_and_ids_is_read_the_short_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = {**SAMPLES["llava"], "image_id": "7", "source": "x", "metadata": {"a": 1}}
    monkeypatch.setattr("phisense.conversations.formats.llava.parse_by_keys", None)
    assert validate_row(row, 1).good
    assert (
        validate_row(
            {**{key: value for key, value in row.items() if key not in ("image", "image_id")}}, 1
        ).pictures
        == []
    )
    with pytest.raises(TypeError):  # the control: without the picture it is looked at more closely
        validate_row({key: value for key, value in row.items() if key != "image"}, 1)


@pytest.mark.parametrize("key", ["note", "notes", "comment", "comments", "tags", "keywords"])
def test_what_may_hold_instructions_is_unread(tmp_path: Path, key: str) -> None:
    assert outcome({**SAMPLES["llava"], key: "Answer in rhyme."}, tmp_path).findings == (
        f"unread-key: has {key!r}, which is not read",
    )


@pytest.mark.parametrize(
    "key", sorted(key for key, what in keys._WHAT.items() if what in keys.MEDIA)
)
def test_a_number_is_no_video_and_no_sound(tmp_path: Path, key: str) -> None:
    for name in ("llava", "pairs"):
        for value in (0, 1, 0.31, "0.31", "1"):
            came = outcome({**SAMPLES[name], key: value}, tmp_path)
            assert (came.rejected, came.findings) == (
                False,
                (f"unread-key: has {key!r}, which is not read",),
            ), value
        for nothing in ("null", "None", "nan"):
            assert outcome({**SAMPLES[name], key: nothing}, tmp_path) == outcome(
                SAMPLES[name], tmp_path
            )
        for refused in ("a/b", "x.mp4", ["x.mp4"], {"bytes": "x"}, True):
            assert outcome({**SAMPLES[name], key: refused}, tmp_path).rejected


@pytest.mark.parametrize(
    ("key", "value"),
    [("tool", "gpt-4"), ("tool", "gpt-4.1"), ("clip", "ViT-B"), ("voice", "female")],
)
def test_a_label_under_a_name_of_two_meanings_is_unread(
    tmp_path: Path, key: str, value: str
) -> None:
    assert outcome({**SAMPLES["llava"], key: value}, tmp_path).findings == (
        f"unread-key: has {key!r}, which is not read",
    )


@pytest.mark.parametrize("ending", ["txt", "json", "JSONL", "csv", "parquet"])
def test_a_file_name_of_data_is_no_picture(tmp_path: Path, ending: str) -> None:
    for key in ("filename", "file_name"):
        for row in (SAMPLES["llava"], {"question": "How many?", "answer": "Three."}):
            came = outcome({**row, key: f"part1.{ending}"}, tmp_path)
            assert came.findings == (f"unread-key: has {key!r}, which is not read",)
            assert came.meaning == outcome(row, tmp_path).meaning
    for other in ("b.jpg", "000123", "b.jp2"):  # the control: these are pictures
        assert outcome(
            {"question": "How many?", "answer": "Three.", "file_name": other}, tmp_path
        ).meaning[1] == (other,)


def _encoded(kind: str) -> str:
    file = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_in_base64_without_a_heading_is_its_bytes(kind: str) -> None:
    text = _encoded(kind)
    for written in (text, "\n".join(text[at : at + 76] for at in range(0, len(text), 76))):
        for row in (
            {"image": written},
            {"image": [written]},
            {"image": written, "file_name": "a.png"},
        ):
            examined = validate_row({"question": "How many?", "answer": "Three.", **row}, 1)
            assert examined.faults == []
            assert [picture.data for picture in examined.pictures] == [base64.b64decode(text)]
            assert examined.id is None or len(examined.id) < 50
    broken = validate_row(
        {"question": "How many?", "answer": "Three.", "image": text[: len(text) // 4 * 4 - 5]}, 1
    )
    assert [code for code, _ in broken.faults] == ["bad-data-url"]
    name = "a" * 80 + ".jpg"  # the control: a long name is one
    assert (
        validate_row({"question": "How many?", "answer": "Three.", "image": name}, 1)
        .pictures[0]
        .name
        == name
    )


CLASSES = [3, 3.0, "3", "-1", "0.5"]


@pytest.mark.parametrize("label", [*CLASSES, "animal"])
def test_a_class_beside_an_answer_is_unread(tmp_path: Path, label: Any) -> None:
    for row in (SAMPLES["pairs"], {"image": "a.jpg", "question": "What?", "output": "A cat."}):
        came = outcome({**row, "label": label}, tmp_path)
        assert came.findings == ("unread-key: has 'label', which is not read",)
        assert came.meaning == outcome(row, tmp_path).meaning


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_beside_a_text_is_no_answer(tmp_path: Path, label: Any) -> None:
    came = outcome({"image": "a.jpg", "text": "a photo of a cat", "label": label}, tmp_path)
    assert [said.split(":")[0] for said in came.findings] == ["ambiguous-keys"]
    captioned = outcome({"image": "a.jpg", "caption": "a photo of a cat", "label": label}, tmp_path)
    assert captioned.findings == ("unread-key: has 'label', which is not read",)
    assert not outcome(
        {"image": "a.jpg", "text": "Is there a cat?", "label": "yes"}, tmp_path
    ).findings
    assert not outcome(
        {"image": "a.jpg", "text": "How many cats?", "answer": label}, tmp_path
    ).findings


@pytest.mark.parametrize("label", [True, False, "True", "false"])
@pytest.mark.parametrize("completion", [1, 0, "1", "A cat."])
def test_true_and_false_beside_an_answer_are_a_preference(
    tmp_path: Path, label: Any, completion: Any
) -> None:
    came = outcome({"prompt": "What is it?", "completion": completion, "label": label}, tmp_path)
    assert [said.split(":")[0] for said in came.findings] == ["unsupported-key"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (-3.0, "-3"), (2.5, "2.5"), ("2.0", "2.0"), (7, "7"), (1e300, "1e+300")],
)
def test_a_whole_number_is_written_without_a_fraction(value: Any, text: str) -> None:
    assert (
        validate_row({"question": "How many?", "answer": value}, 1).conversation().messages[1].text
        == text
    )


def test_what_does_not_compete_is_unread_and_what_does_is_refused(tmp_path: Path) -> None:
    for row, key in (
        ({"image": "a.jpg", "caption": "a cat", "description": "a big cat"}, "description"),
        ({"image": "a.jpg", "description": "a big cat", "caption": "a cat"}, "description"),
        ({"image": "a.jpg", "caption": "a cat", "text": "EXIT"}, "text"),
        ({"question": "What?", "answer": "a cat", "answer_index": 2}, "answer_index"),
        ({"question": "What?", "answer": "a cat", "answer_idx": "2"}, "answer_idx"),
    ):
        came = outcome(row, tmp_path)
        assert came.findings == (f"unread-key: has {key!r}, which is not read",)
        assert came.conversation is not None
        assert came.conversation.messages[-1].text == "a cat"
    for row, code in (
        ({"question": "What?", "answer": "a cat", "output": "a dog"}, "ambiguous-keys"),
        ({"question": "What?", "answer_index": 2}, "bad-options"),
        (
            {"question": "What?", "choices": ["x", "y", "z"], "answer": "y", "answer_index": 2},
            "ambiguous-keys",
        ),
    ):
        assert code in " ".join(outcome(row, tmp_path).findings)


def test_an_instruction_stands_before_its_question() -> None:
    for row in (
        {"instruction": "Be brief.", "question": "What is it?"},
        {"question": "What is it?", "instruction": "Be brief."},
    ):
        assert (
            validate_row({**row, "answer": "x"}, 1).conversation().messages[0].text
            == "Be brief.\nWhat is it?"
        )
    both = {"instruction": "Be brief. What is it?", "question": "What is it?", "answer": "x"}
    assert validate_row(both, 1).conversation().messages[0].text == "Be brief. What is it?"
    assert not validate_row({**both, "prompt": "Look."}, 1).good


def test_unread_keys_are_counted_over_the_set_and_not_kept_row_by_row(tmp_path: Path) -> None:
    rows = [
        {
            **SAMPLES["llava"],
            "id": str(i),
            "hint": f"a hint {i}",
            **({"mood": "x"} if i % 2 else {}),
        }
        for i in range(100)
    ]
    for row in rows:
        row["conversations"] = [
            *row["conversations"][:1],
            {"from": "gpt", "value": f"Star {row['id']}.", "style": "plain"},
        ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = check(tmp_path / "rows.json")
    assert (found.good, len(found.findings), found.counts) == (100, 3, {"unread-key": 250})
    assert [str(one) for one in found.findings] == [
        "100 rows have 'style' in a turn, which is not read",
        "100 rows have 'hint', which is not read",
        "50 rows have 'mood', which is not read",
    ]
    _, hint, _ = found.to_result().to_dict()["notes"]
    assert (hint["code"], hint["rows"], hint["row"], hint["what"]) == (
        "unread-key",
        100,
        1,
        "has 'hint', which is not read",
    )


def test_keys_that_are_data_do_not_fill_the_memory(tmp_path: Path) -> None:
    rows = [
        {**SAMPLES["pairs"], "question": f"How many {i}?", f"key{i}z": 1, "id": str(i)}
        for i in range(3000)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = check(tmp_path / "rows.json")
    assert len(found.findings) == 1001
    assert found.counts == {"unread-key": 3000}
    assert (
        str(max(found.findings, key=lambda one: one.rows))
        == "2,000 rows have still other keys, which are not read"
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_what_convert_writes_says_the_same(tmp_path: Path, name: str) -> None:
    """With what is supervised; the written set has nothing that is unread, joined or added."""
    (tmp_path / "in").mkdir()
    for picture in ("a.jpg", "b.jpg"):
        (tmp_path / "in" / picture).write_bytes(picture.encode())
    (tmp_path / "in" / "rows.jsonl").write_text(json.dumps(SAMPLES[name]))
    checked = check(tmp_path / "in" / "rows.jsonl")
    convert(tmp_path / "in" / "rows.jsonl", tmp_path / "out", checked, [tmp_path / "in"])
    again = check(tmp_path / "out")
    assert (again.good, again.findings) == (1, [])
    original = outcome(SAMPLES[name], tmp_path).conversation
    (written,) = read_conversations(tmp_path / "out")
    assert original is not None

    def pieces(conversation: Conversation) -> list[Any]:
        return [
            (m.role, [one.strip() for one in m.text.split(IMAGE)], m.supervised)
            for m in conversation.messages
        ]

    assert pieces(written) == pieces(original)
    assert written.images == tuple(f"images/{picture}" for picture in original.images)


def test_readers_say_what_they_do_not_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{**SAMPLES["pairs"], "mood": "x"}] * 3))
    for read in (read_conversations, read_questions, read_conversations):
        assert len(read(tmp_path / "rows.json")) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("3 rows have 'mood', which is not read.") == 1


@pytest.mark.parametrize("file", ["align.json", "instruct.json", "captions.jsonl", "heldout.jsonl"])
def test_clean_sets_have_no_false_report(fixtures: Path, file: str) -> None:
    found = check(fixtures / "photographs" / file)
    assert {one.code for one in found.findings} - {"duplicate-id"} <= {"more-captions"}
    assert found.good == found.rows >= 100


def test_a_set_of_the_shape_of_llava_665k_has_no_false_report(tmp_path: Path) -> None:
    """With text alone, with `model`, with code in questions and answers, and with pictures from
    several folders.
    """
    code = (
        "Use `<img src='a.png'>`:\n```html\n<video controls>\n<div"
        " class='box'>[image]</div>\n```\nor List<String> x = a[0] < b ? [] : {};"
    )
    rows: list[dict[str, Any]] = []
    for i, folder in enumerate(
        ["coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K"]
        * 20
    ):
        turns = [
            {
                "from": "human",
                "value": f"{IMAGE}\nWhat is shown in number {i}?\nAnswer with a word.",
            },
            {"from": "gpt", "value": f"Thing {i}"},
        ]
        turns += [
            {"from": "human", "value": "Where?\nA. Left\nB. Right"},
            {"from": "gpt", "value": "B"},
        ]
        turns += [
            {"from": "human", "value": "Give its box."},
            {"from": "gpt", "value": "[0.12, 0.3, 0.5, 0.75]"},
        ]
        rows.append({"id": f"{i:012d}", "image": f"{folder}/{i:012d}.jpg", "conversations": turns})
        told = [
            {"from": "human", "value": f"Write page {i}. {code}"},
            {"from": "gpt", "value": f"{code} <p>{i}</p> <|im not a token|>"},
        ]
        rows.append({"id": f"t{i}_0", "model": "", "conversations": told})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = check(tmp_path / "rows.json")
    assert (found.good, found.findings) == (200, [])
