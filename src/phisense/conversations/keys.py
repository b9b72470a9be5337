"""The table of all keys that a row, a turn, a content part or a text pair may have: which are read,
ignored or rejected.

`GroupedFields` (grouped_fields.py) sorts the keys of one mapping by this table. Keys match in any
case and with spaces, hyphens or underscores between words: `Image Path` is `image_path`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

IGNORED_GROUP, UNSUPPORTED_GROUP = "nothing", "refused"


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
PREFERENCE = "a preference between answers"  # for which false is as meaningful as true
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
    PREFERENCE: """
        chosen rejected rejected_response rejected_responses rejected_answer chosen_response
        chosen_answer preferred dispreferred preference rejected_messages rejected_images
        kto_tag
    """,
    "the weight of parts of a text": """
        train_detail token_weights loss_mask label_mask
    """,
}
# for which a bare number is not a value
MEDIA = ("a video", "a sound", "a cloud of points", "calls of tools")
_WHAT = {key: what for what, keys in _NOT_TRAINED_ON.items() for key in keys.split()}


def normalize_key(key: str) -> str:
    """Normalize a key: `Image-Path `, `imagePath` and `image_path` are the same."""
    return re.sub(r"[\s_-]+", "", key.lower())


def _table(groups: dict[str, Iterable[str]]) -> dict[str, str]:
    table = {normalize_key(key): UNSUPPORTED_GROUP for key in _WHAT}
    table |= {normalize_key(key): group for group, keys in groups.items() for key in keys}
    return table | {key: group for group, keys in groups.items() for key in keys}


GROUPS_BY_LEVEL = {
    "": _table(ROW_KEYS),
    "a turn": _table(TURN_KEYS),
    "a part": _table(PART_KEYS),
    "a text": _table(PAIR_KEYS),
}
UNSUPPORTED_KEYS = {normalize_key(key): what for key, what in _WHAT.items()}
#: Keys of the most common row shapes, as published, which need no lookup in the tables.
PLAIN_KEYS = frozenset(
    {"id", "image", "images", "conversations", "messages", *IMAGE_ID_KEYS, *ROW_KEYS[IGNORED_GROUP]}
)
