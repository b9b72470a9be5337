"""Parse turns: lists under `conversations` or `messages`, content parts, text pairs
(`parse_text_pairs`) and histories (`parse_history`).
"""

from __future__ import annotations

from typing import Any

from ..safe_parsing import quote, shorten
from .cells import is_empty
from .grouped_fields import GroupedFields, ambiguity_fault
from .parsed_row import ParsedRow
from .placeholders import count_placeholders
from .types import IMAGE, Role

ROLE_NAMES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_OTHERS: dict[str, Role] = {
    **dict.fromkeys(("model", "bot", "ai", "chatgpt", "chatbot", "bing", "bard"), "assistant"),
    "developer": "system",
}
_OFF, _ON = (0, "0", "false", "False"), (1, "1", "true", "True")
_TEXT, _IMAGE = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")


def parse_role(written: str) -> Role | None:
    """The role for any of its names, in any case; None if unknown."""
    return (
        ROLE_NAMES.get(written)
        or ROLE_NAMES.get(name := written.strip().lower())
        or _OTHERS.get(name)
    )


def parse_turns(parsed: ParsedRow, turns: list[Any], key: str) -> None:
    """Parse every turn of a list. The most common form comes first, because this runs for every
    turn.
    """
    say = parsed.turns.append
    for index, turn in enumerate(turns, 1):
        if type(turn) is dict:
            if len(turn) == 2:
                if (role := turn.get("from")) is not None:
                    text = turn.get("value")
                else:
                    role, text = turn.get("role"), turn.get("content")
                if type(text) is str and type(role) is str:
                    say((role, text))
                    continue
            if _turn(parsed, turn, index) or _exchange(parsed, turn):
                continue
        wanted = (
            '{"from": ..., "value": text}'
            if key == "conversations"
            else '{"role": ..., "content": text or parts}'
        )
        parsed.faults.append(("bad-turn", f"has {quote(turn)} as turn {index}, wanted {wanted}"))


def _turn(parsed: ParsedRow, turn: dict[Any, Any], index: int) -> bool:
    """Parse a turn with more than a role and a text, or with these in another form; False if it is
    not a turn.
    """
    fields = GroupedFields(turn, "a turn")
    if refused := fields.take_unsupported():
        parsed.faults += refused
        return True
    role, text = (_one(parsed, fields, group) for group in ("role", "text"))
    pictures = fields.take("pictures")
    known = parse_role(role) if isinstance(role, str) else None
    if text is None and (pictures or known == "system"):
        text = ""
    if isinstance(text, list):
        text = _parts(parsed, text, index)
    if not (isinstance(role, str) and isinstance(text, str)):
        return False
    if pictures:
        text = _with_turn_images(parsed, pictures, text, index, answers=known != "user")
    parsed.add_turn(
        role, text, supervised=_supervised(parsed, fields, index, answers=known == "assistant")
    )
    parsed.ignored_keys += fields.unused()
    return True


def _exchange(parsed: ParsedRow, turn: dict[Any, Any]) -> bool:
    """Parse XTuner's {"system", "input", "output"}, a question and its answer in one; False if it
    is none.
    """
    if not {"input", "output"} <= turn.keys() or not all(
        isinstance(turn[key], str) for key in ("input", "output")
    ):
        return False
    system = turn.get("system")
    if isinstance(system, str) and system.strip() and ("system", system) not in parsed.turns[:1]:
        parsed.add_turn("system", system)
    renamed = {"input": "user", "output": "assistant"}
    parse_text_pairs(
        parsed,
        [
            {
                renamed.get(key, key): value
                for key, value in turn.items()
                if key != "system" or not isinstance(value, str | None)
            }
        ],
    )
    return True


def _one(parsed: ParsedRow, fields: GroupedFields, group: str) -> Any:
    """The value of one group of keys, None if there is none; two different values are a fault."""
    found = fields.take(group)
    full = [one for one in found if not is_empty(one[1])]
    if any(value != full[0][1] for _, value in full[1:]):
        parsed.faults.append(
            ambiguity_fault(
                full, f"the {group} of a turn" if fields.level == "a turn" else f"its {group}"
            )
        )
    some = full or found
    return some[0][1] if some else None


def _with_turn_images(
    parsed: ParsedRow, pictures: list[tuple[str, Any]], text: str, index: int, *, answers: bool
) -> str:
    """Add a turn's own images: at its start, unless its text marks their positions."""
    if len(pictures) > 1:
        parsed.faults.append(ambiguity_fault(pictures, f"pictures in turn {index}"))
    if answers:
        parsed.faults.append(
            ("image-in-answer", f"has pictures in turn {index}, which is no question")
        )
    value = pictures[0][1]
    values = value if isinstance(value, list) else [value]
    parsed.part_images += values
    return (
        text
        if count_placeholders(text, len(values))
        else "\n".join([*[IMAGE] * len(values), *([text] if text else [])])
    )


def _supervised(parsed: ParsedRow, fields: GroupedFields, index: int, *, answers: bool) -> bool:
    """Whether a turn is supervised. Questions never are, whatever their weight."""
    found = {}
    for group in ("weight", "mask"):
        for key, value in fields.take(group):
            off, on = value in _OFF, value in _ON
            if not (off or on):
                parsed.faults.append(
                    (
                        "bad-weight",
                        (
                            f"has the weight {quote(value)} under {quote(key)} in turn {index},"
                            " wanted 0 or 1"
                        ),
                    )
                )
                return True
            found[key] = on if group == "weight" else off
    if not answers:
        parsed.ignored_keys += [("a question", key) for key in found]
        return True
    if len(set(found.values())) > 1:
        parsed.faults.append(ambiguity_fault(list(found.items()), f"the weight of turn {index}"))
    return next(iter(found.values()), True)


def _parts(parsed: ParsedRow, parts: list[Any], index: int) -> str:
    """The text of a message's content parts; images in the parts are added in order."""
    texts: list[str | None] = []  # None for an image
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        fields = GroupedFields(part, "a part") if isinstance(part, dict) else None
        if fields is None:
            parsed.faults.append(
                (
                    "unsupported-part",
                    f"has {quote(part)} as a part of turn {index}, wanted text or image",
                )
            )
            continue
        kind, text = _one(parsed, fields, "type"), fields.found.get("text")
        if kind is None:
            kind = "image" if "picture" in fields.found else "text" if text else None
        if kind in _TEXT and text and isinstance(text[0][1], str):
            texts.append(str(_one(parsed, fields, "text")))
        elif kind in _IMAGE:
            texts.append(None)
            if kind == "image_url":
                parsed.shape = "openai"
            _carry(parsed, fields)
        else:
            parsed.faults.append(
                (
                    "unsupported-part",
                    f"has a part of type {shorten(kind)} in turn {index}, wanted text or image",
                )
            )
            continue
        parsed.faults += fields.take_unsupported()
        parsed.ignored_keys += fields.unused()
    return _with_pictures(texts)


def _with_pictures(texts: list[str | None]) -> str:
    """Join the parts, with `<image>` for each image, unless the texts already mark as many
    positions.
    """
    pictures = texts.count(None)
    if pictures:
        words = "\n".join(text for text in texts if text is not None)
        if count_placeholders(words, pictures) == pictures:
            return words
    return "\n".join(IMAGE if text is None else text for text in texts)


def reorder_images(parsed: ParsedRow) -> None:
    """Sort the row's images by the numbers in its parts, from 0 or 1; each must occur once."""
    numbers, of = parsed.part_indices, len(parsed.pictures)
    if all(number is None for number in numbers):
        return
    numbers = [
        int(number) if isinstance(number, float) and number.is_integer() else number
        for number in numbers
    ]  # from a table
    start = 0 if 0 in numbers else 1
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(
        range(start, start + of)
    ):
        fields = ", ".join(
            "none" if number is None else quote(number, 20) for number in numbers[:20]
        )
        parsed.faults.append(
            (
                "bad-picture-name",
                f"numbers the pictures of its parts {fields}, wanted each of its {of} pictures"
                f" once",
            )
        )
        return
    parsed.pictures = [parsed.pictures[number - start] for number in numbers]


def _carry(parsed: ParsedRow, fields: GroupedFields) -> None:
    """Add the image of a content part: its own, or the index of one of the row's."""
    carried = []
    for key, value in fields.take("picture"):
        # Anthropic: {"type": "base64", "media_type", "data"}
        if isinstance(value, dict) and isinstance(value.get("data"), str):
            value = f"data:{value.get('media_type') or 'image/png'};base64,{value['data']}"
        elif isinstance(value, dict) and "url" in value:
            value = value["url"]
        if not is_empty(value):
            carried.append((key, value))
    if any(value != carried[0][1] for _, value in carried[1:]):
        parsed.faults.append(ambiguity_fault(carried, "the picture of a part"))
    parsed.part_images += [value for _, value in carried[:1]]
    if carried and fields.found.get("index", [("", None)])[0][1] in (
        len(parsed.part_images) - 1,
        len(parsed.part_images),
    ):
        fields.take("index")  # redundant: the position of the part
    elif not carried:
        parsed.part_indices += [value for _, value in fields.take("index")[:1]] or [None]


def parse_text_pairs(parsed: ParsedRow, pairs: list[Any]) -> None:
    """Parse Cauldron's question-answer pairs."""
    for index, pair in enumerate(pairs, 1):
        fields = GroupedFields(pair, "a text") if isinstance(pair, dict) else GroupedFields({})
        if refused := fields.take_unsupported():
            parsed.faults += refused
            continue
        asked, answered = _one(parsed, fields, "user"), _one(parsed, fields, "assistant")
        if not (isinstance(asked, str) and isinstance(answered, str)):
            parsed.faults.append(
                (
                    "bad-turn",
                    f'has {quote(pair)} as text {index}, wanted {{"user": text, "assistant":'
                    f" text}}",
                )
            )
            continue
        if pictures := fields.take("pictures"):
            asked = _with_turn_images(parsed, pictures, asked, 2 * index - 1, answers=False)
        parsed.add_turn("user", asked)
        parsed.add_turn(
            "assistant", answered, supervised=_supervised(parsed, fields, 2 * index, answers=True)
        )
        parsed.ignored_keys += fields.unused()


def parse_history(parsed: ParsedRow, former: Any, key: str) -> None:
    """Parse earlier exchanges: LLaMA-Factory's [[question, answer], ...], or turns or pairs."""
    for index, one in enumerate(former if isinstance(former, list) else [former], 1):
        if (
            isinstance(one, (list, tuple))
            and len(one) == 2
            and all(isinstance(text, str) for text in one)
        ):
            parsed.add_turn("user", one[0])
            parsed.add_turn("assistant", one[1])
        elif isinstance(one, dict) and "user" in one:
            parse_text_pairs(parsed, [one])
        elif isinstance(one, dict):
            parse_turns(parsed, [one], "messages")
        else:
            parsed.faults.append(
                (
                    "bad-turn",
                    (
                        f"has {quote(one)} as exchange {index} of {quote(key)}, wanted [question,"
                        " answer]"
                    ),
                )
            )
