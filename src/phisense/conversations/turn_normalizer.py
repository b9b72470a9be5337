"""The slow path for turns that are not in LLaVA's form: role aliases, empty system texts, other
placeholders, consecutive turns of one role.
"""

from __future__ import annotations

from .json_reader import Fault
from .parsed_row import ParsedRow
from .placeholders import PlaceholderNormalizer
from .row_images import add_named_images
from .turn_parser import parse_role


def normalize_turns(parsed: ParsedRow, faults: list[Fault]) -> list[Fault]:
    """Fix what can be fixed, in place; extends and returns `faults`."""
    turns = [
        (parse_role(written) or written, text, at not in parsed.unsupervised)
        for at, (written, text) in enumerate(parsed.turns)
    ]
    turns = [turn for turn in turns if turn[0] != "system" or turn[1].strip()]
    said = len(parsed.faults)
    markers = PlaceholderNormalizer(
        [picture.name for picture in parsed.pictures], [text for _, text, _ in turns]
    )
    questions = iter(
        markers.normalize_questions([text for role, text, _ in turns if role == "user"])
    )
    for role, text, _ in turns:
        if role != "user":
            markers.check_answer(text)
    turns = [(role, next(questions) if role == "user" else text, on) for role, text, on in turns]
    if markers.named:
        add_named_images(parsed, markers.named)
    new = [*parsed.faults[said:], *markers.faults]
    del parsed.faults[said:]
    joined = _joined(turns)
    if len(joined) < len(turns):
        new.append(
            ("joined-turns", f"has {len(turns) - len(joined)} turns behind one of the same role")
        )
    parsed.turns = [(role, text) for role, text, _ in joined]
    parsed.unsupervised = {at for at, (_, _, on) in enumerate(joined) if not on}
    faults += new
    return new


def _joined(turns: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """Merge consecutive turns of one role; not empty ones, nor a supervised with an unsupervised
    one.
    """
    runs: list[tuple[str, list[str], bool]] = []
    for role, text, on in turns:
        if (
            runs
            and (runs[-1][0], runs[-1][2]) == (role, on)
            and text.strip()
            and runs[-1][1][-1].strip()
        ):
            runs[-1][1].append(text)
        else:
            runs.append((role, [text], on))
    return [(role, texts[0] if len(texts) == 1 else _lines(texts), on) for role, texts, on in runs]


def _lines(texts: list[str]) -> str:
    """Join texts by line breaks; leading and trailing spaces stay."""
    return "\n".join(
        [texts[0].rstrip(), *(text.strip() for text in texts[1:-1]), texts[-1].lstrip()]
    )
