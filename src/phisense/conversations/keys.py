"""The table of all keys that a row, a turn, a content part or a text pair may have: which are read,
ignored or rejected.

An unknown key is never silently dropped. `GroupedFields` sorts the keys of one mapping into groups
by this table; the parsers take the groups that they read; the rest is either *unused*, which is
counted and reported (`unused`), or *unsupported*, which rejects the row. Keys match in any case and
with spaces, hyphens or underscores between words: `Image Path` is `image_path`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import orjson

from .. import safe_parsing
from ..safe_parsing import quote
from .json_reader import Fault

IGNORED_GROUP, UNSUPPORTED_GROUP = "nothing", "refused"
_MAX_CELL_LENGTH = 2**24  # characters of a cell that is parsed


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Keys of images. For the weak ones, only a value that ends like an image name counts.
IMAGE_KEYS = _words("""
    images image image_file_names images_file_names file_names file_name filename filenames
    image_path image_paths image_file image_files image_name image_filename img imgs img_path
    img_file picture pictures picture_path photo photos pic pics
""")
WEAK_IMAGE_KEYS = (
    "file",
    "files",
    "path",
    "paths",
    "file_path",
    "filepath",
    "url",
    "image_url",
    "img_url",
    "picture_url",
)
#: Used as the image name if nothing else names the image and the value ends like one; otherwise
#: ignored.
IMAGE_ID_KEYS = ("image_id", "img_id", "picture_id")
#: A value of these keys that ends like a table or text file is the source of the row, not an image.
FILE_NAME_KEYS = frozenset(("filename",))
_ENDS_LIKE_DATA = re.compile(
    r".*\.(?:txt|json|jsonl|ndjson|csv|tsv|parquet|arrow|md|xml|ya?ml|html?|pdf|docx?|xlsx?|py|tar|"
    r"zip|gz)",
    re.I | re.S,
)

#: Group -> keys of a row.
ROW_KEYS: dict[str, Iterable[str]] = {
    "id": ("id", "question_id"),
    "conversations": ("conversations", "conversation"),
    "messages": ("messages",),
    "texts": ("texts",),
    "pictures": IMAGE_KEYS,
    "weak pictures": WEAK_IMAGE_KEYS,
    "picture ids": IMAGE_ID_KEYS,
    "system": ("system", "system_prompt", "system_message", "system_text", "sys_prompt"),
    "history": ("history",),
    "question": ("question", "query", "instruction", "prompt"),
    "input": ("input", "inputs"),
    "text": ("text",),
    "caption": ("caption", "captions", "description"),
    "answer": _words("""
        answer answers label output response completion multiple_choice_answer correct_answer
        correct_option correct_choice_idx answer_idx answer_index
    """),
    "options": ("choices", "options"),
    "hint": ("hint",),
    "context": ("context",),
    "weight": ("weight", "sample_weight", "loss_weight"),
    IGNORED_GROUP: _words("""
        index idx uid uuid guid key sample_id row_id item_id doc_id conversation_id conv_id
        chat_id dialog_id hash md5 sha1 sha256 phash source sources dataset datasets
        dataset_name dataset_id data_source data_name origin original_source coco_url flickr_url
        homepage license licence copyright author authors annotator annotators creator created
        created_at updated_at timestamp date time version revision split subset fold partition
        height width image_height image_width image_size img_size size resolution width_list
        height_list meta metadata meta_data extra info category categories kind type task
        task_type task_name question_type answer_type data_type image_type img_type subject
        subfield topic topic_difficulty skill grade difficulty level domain field lang language
        languages locale model model_name generator quality quality_score score scores rating
        ratings confidence similarity clip_score aesthetic_score num_turns n_turns turns_count
        num_tokens token_count tokens n_tokens length num_images image_count n_images format
        mime mime_type mode file_size bytes_size ordinal position_in_file status flag instances
        annotations l2_category relevance_ratings relevance_min visual_dependency_ratings
        visual_dependency_min image_correspondence_ratings image_correspondence_min
        formatting_ratings formatting_min __key__ __url__ __index_level_0__
    """),
}
#: Group -> keys of a turn, in `conversations` and `messages`.
TURN_KEYS: dict[str, Iterable[str]] = {
    "role": ("from", "role"),
    "text": ("value", "content"),
    "pictures": IMAGE_KEYS,
    "weight": (
        "weight",
        "loss",
        "loss_weight",
        "loss_scale",
        "train",
        "training",
        "trainable",
        "supervised",
    ),
    "mask": ("mask", "masked"),
    IGNORED_GROUP: (
        "id",
        "message_id",
        "turn_id",
        "index",
        "timestamp",
        "created_at",
        "create_time",
        "date",
        "model",
        "lang",
        "language",
        "tokens",
    ),
}
#: Group -> keys of a content part of a message.
PART_KEYS: dict[str, Iterable[str]] = {
    "type": ("type",),
    "text": ("text",),
    "picture": ("image", "image_url", "url", "path", "source", "input_image"),
    "index": ("index",),
    IGNORED_GROUP: (
        "detail",
        "min_pixels",
        "max_pixels",
        "resized_height",
        "resized_width",
        "cache_control",
        "id",
        "annotations",
    ),
}
#: Group -> keys of a pair under `texts`.
PAIR_KEYS: dict[str, Iterable[str]] = {
    "user": ("user",),
    "assistant": ("assistant",),
    "pictures": IMAGE_KEYS,
    "weight": TURN_KEYS["weight"],
    "mask": TURN_KEYS["mask"],
    IGNORED_GROUP: ("source", "id", "index", "dataset"),
}
_PREFERENCE = "a preference between answers"  # for which false is as meaningful as true
#: Unsupported key -> what it means; rejected at every level.
_NOT_TRAINED_ON = {
    "a video": """
        video videos video_path video_paths video_file video_files video_url video_id_path clip
        clips frames video_frames
    """,
    "a sound": """
        audio audios audio_path audio_paths audio_file audio_files audio_url input_audio speech
        speeches sound sounds wav wavs voice music
    """,
    "a cloud of points": """
        point_cloud point_clouds pointcloud
    """,
    "calls of tools": """
        tools tool functions function tool_calls tool_call tool_call_id function_call
        function_calls available_tools tool_choice
    """,
    _PREFERENCE: """
        chosen rejected rejected_response rejected_responses rejected_answer chosen_response
        chosen_answer preferred dispreferred preference rejected_messages rejected_images
        kto_tag
    """,
    "the weight of parts of a text": """
        train_detail token_weights loss_mask label_mask
    """,
}
# for which a bare number is not a value
_MEDIA = ("a video", "a sound", "a cloud of points", "calls of tools")
_OF_TWO_MEANINGS = ("clip", "tool", "voice")
_NUMBER = re.compile(r"[+-]?\d{0,18}(?:\.\d{1,18}|\d)(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_PATH = re.compile(r"[/\\{\[]|\.[A-Za-z]\w{1,4}\s*\Z")
_ENDINGS = r"\.(?:jpe?g|png|webp|bmp|gif|tiff?|heic|heif|avif)"
_IMAGE_NAME = re.compile(rf"[^\n]*{_ENDINGS}(?:[?#][^\n]*)?", re.IGNORECASE)
_IMAGE_NAME_INSIDE = re.compile(rf"{_ENDINGS}[\"'?#]", re.IGNORECASE)
_MAX_NAME_LENGTH = 4096
_WHAT = {key: what for what, keys in _NOT_TRAINED_ON.items() for key in keys.split()}


def normalize_key(key: str) -> str:
    """Normalize a key: `Image-Path `, `imagePath` and `image_path` are the same."""
    return re.sub(r"[\s_-]+", "", key.lower())


def _table(groups: dict[str, Iterable[str]]) -> dict[str, str]:
    table = {normalize_key(key): UNSUPPORTED_GROUP for key in _WHAT}
    table |= {normalize_key(key): group for group, keys in groups.items() for key in keys}
    return table | {key: group for group, keys in groups.items() for key in keys}


_TABLES = {
    "": _table(ROW_KEYS),
    "a turn": _table(TURN_KEYS),
    "a part": _table(PART_KEYS),
    "a text": _table(PAIR_KEYS),
}
_REFUSED = {normalize_key(key): what for key, what in _WHAT.items()}
#: Keys of the most common row shapes, as published, which need no lookup in the tables.
PLAIN_KEYS = frozenset(
    {"id", "image", "images", "conversations", "messages", *IMAGE_ID_KEYS, *ROW_KEYS[IGNORED_GROUP]}
)
#: Groups that are kept even if their value is empty: an empty turn is a fault of its own.
_KEPT = {
    "": ("conversations", "messages", "texts"),
    "a turn": ("text",),
    "a part": ("text",),
    "a text": ("user", "assistant"),
}
_LETTER = re.compile(r"(?:option|choice)?([a-z])")
_NUMBERED = re.compile(r"(?:image|img|picture)(\d{1,3})")


class GroupedFields:
    """The keys of one mapping by group, each as [(original key, value)]; empty values are dropped.

    `letters` are the columns `A`, `B` ... (or `option_a` ...), `numbered` are `image_1`, `image_2`
    ...
    """

    __slots__ = ("found", "ignored", "letters", "level", "numbered", "rest")

    def __init__(self, mapping: dict[Any, Any], level: str = "") -> None:
        table, kept = _TABLES[level], _KEPT[level]
        self.level = level
        self.found: dict[str, list[tuple[str, Any]]] = {}
        self.rest: list[str] = []
        # ignored, unless it is the only one to name an image
        self.ignored: list[tuple[str, Any]] = []
        self.letters: dict[str, tuple[str, Any]] = {}
        self.numbered: dict[int, tuple[str, Any]] = {}
        for written, value in mapping.items():
            key = str(written)
            group = table.get(key) or table.get(normalize_key(key))
            if group == IGNORED_GROUP:
                self.ignored.append((key, value))
                continue
            if group is None:
                self._unknown(key, value)
            elif value is not None if group in kept else not is_empty(value):
                known = self.found.setdefault(group, [])
                # drop a second key with the same value
                if not any(_equal(value, other) for _, other in known):
                    known.append((key, value))

    def _unknown(self, key: str, value: Any) -> None:
        if self.level == "" and (match := _LETTER.fullmatch(normalize_key(key))):
            self.letters[match[1]] = key, value
        elif is_empty(value):
            return
        elif self.level == "" and (match := _NUMBERED.fullmatch(normalize_key(key))):
            self.numbered[int(match[1])] = key, value
        else:
            self.rest.append(key)

    def copy(self) -> GroupedFields:
        """The same keys, to take from."""
        made = GroupedFields.__new__(GroupedFields)
        made.level, made.found = self.level, dict(self.found)
        made.rest, made.ignored = list(self.rest), list(self.ignored)
        made.letters, made.numbered = dict(self.letters), dict(self.numbered)
        return made

    def get(self, group: str) -> list[tuple[str, Any]]:
        """A group, which stays unused."""
        return self.found.get(group, [])

    def take(self, group: str) -> list[tuple[str, Any]]:
        """Return a group and mark it as used."""
        return self.found.pop(group, [])

    def put_back(self, group: str, pairs: list[tuple[str, Any]]) -> None:
        """Mark pairs that were taken as unused."""
        if pairs:
            self.found[group] = pairs

    def take_unsupported(self) -> list[Fault]:
        """The faults of unsupported keys, which are marked as used."""
        faults = []
        for key, value in self.take(UNSUPPORTED_GROUP):
            what = _REFUSED[normalize_key(key)]
            if what in _MEDIA and _is_none(value):
                continue
            if (value is False and what != _PREFERENCE) or (
                isinstance(value, str) and value.strip() in ("[]", "{}")
            ):
                continue
            if what in _MEDIA and (
                _is_number(value)
                or (normalize_key(key) in _OF_TWO_MEANINGS and not _is_path(value))
            ):
                self.rest.append(key)  # a fraction, a frame count, the tool that wrote the row
                continue
            where = f" in {self.level}" if self.level else ""
            faults.append(
                (
                    "unsupported-key",
                    f"has {quote(key)}{where}, {what}, which phisense does not train on",
                )
            )
        return faults

    def unused(self) -> list[tuple[str, str]]:
        """(level, key) of everything that was not taken."""
        pairs = [
            *(one for found in self.found.values() for one in found),
            *self.letters.values(),
            *self.numbered.values(),
        ]
        told = [key for key, value in pairs if not is_empty(value)]
        return [(self.level, key) for key in (*told, *self.rest)]


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("null", "none", "nan")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_path(value: Any) -> bool:
    """Whether a value may be a file, a list of files or a mapping, and not a word or label."""
    return not isinstance(value, str) or _PATH.search(value) is not None


def names_image(value: Any, depth: int = 2) -> bool:
    """Whether a value, or one nested in it, ends like an image name."""
    if isinstance(value, str):
        if value[:1] in "[{" and value.strip():
            return _IMAGE_NAME_INSIDE.search(value[:_MAX_NAME_LENGTH]) is not None
        return len(value) <= _MAX_NAME_LENGTH and _IMAGE_NAME.fullmatch(value.strip()) is not None
    if depth and isinstance(value, (dict, list)):
        some = islice(value.values() if isinstance(value, dict) else value, 20)
        return any(names_image(one, depth - 1) for one in some)
    return False


def ends_like_data(value: Any) -> bool:
    """Whether a value is the name of a table or text file."""
    return isinstance(value, str) and _ENDS_LIKE_DATA.fullmatch(value.strip()) is not None


def is_empty(value: Any) -> bool:
    """True for null, an empty cell, an empty list or mapping, a list of only empty values, and NaN,
    which tables write for null.
    """
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, (list, tuple)):
        return all(one is None or (isinstance(one, str) and not one.strip()) for one in value)
    return (isinstance(value, dict) and not value) or (isinstance(value, float) and value != value)


def cell_text(value: Any) -> str:
    """A value as text. Integral floats lose their fraction, because tables store integer columns
    with gaps as floats: 2.0 becomes "2".
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def ambiguity_fault(pairs: Iterable[tuple[str, Any]], what: str) -> Fault:
    """The fault of several keys that could all be `what`."""
    return (
        "ambiguous-keys",
        f"has {what} under {' and '.join(quote(key) for key, _ in pairs)}, and they differ",
    )


def ignored_key_note(level: str, key: str) -> str:
    """The note about a row with an ignored key."""
    return f"has {quote(key)}{f' in {level}' if level else ''}, which is not read"


class CellError(Exception):
    """A text that is not the expected list or mapping; the message completes "has text under
    'choices' ".
    """


def parse_cell(value: Any) -> Any:
    """Parse a list or mapping stored as text in a table cell, as JSON or a Python literal; other
    values are returned unchanged. Raises CellError.
    """
    if not isinstance(value, str) or not (text := value.strip()).startswith(("[", "{")):
        return value
    if len(text) > _MAX_CELL_LENGTH:
        raise CellError(f"of more than {_MAX_CELL_LENGTH // 2**20} MB")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        found = _parse_python_literal(text)
        if found is None:
            raise CellError(f"that is not JSON ({safe_parsing.truncate(str(error))})") from error
    if safe_parsing.is_too_deep(found):
        raise CellError(f"that is nested more than {safe_parsing.MAX_DEPTH} levels deep")
    return found


def _parse_python_literal(text: str) -> Any:
    """Parse `['a', 'b']`, as pandas writes lists into cells; only if its repr is the same text
    again, so that nothing is guessed.
    """
    if len(text) > 2**20 or any(text.count(bracket) > 10_000 for bracket in "[{("):
        return None
    try:
        found = ast.literal_eval(text)
        return found if repr(found) == text else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
