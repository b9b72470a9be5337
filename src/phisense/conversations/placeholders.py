"""Normalize other projects' image placeholders to `<image>`, and reject those that must not be
trained on as text.

Accepted in questions: `<Image>`, `<image_placeholder>`, `<|image_1|>`, `<image_1>`, `<image:1>`,
`<ImageHere>`, `(<image>./</image>)`, `[IMG]`, `[image1]`, `{image}`, and `<img>a.jpg</img>`, which
names the image. Rejected: video and sound placeholders, boxes and references in special tags, any
of these in an answer, and HTML or Markdown images in a row without an image.

HTML tags may be plain text. Therefore a possible tag (`<img>`, `<video>`, `<picture>`) counts only
in the position of a placeholder: at the start of the text, after its last sentence or alone on a
line, and not quoted, closed or mentioned ("the <img> tag"). `<Image>` without an image and
`<video>` also count within a sentence, unless the row is about HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..safe_parsing import quote
from .json_reader import Fault
from .tags import (
    CERTAIN_TAG,
    FILE_NAME,
    FILE_NAME_TAG,
    FILE_TAG,
    GROUNDING,
    LIKELY_MEDIA,
    LIKELY_TAG,
    OTHER_MEDIA,
    POSSIBLE_TAG,
    HtmlContext,
    TaggedText,
    file_name_in,
    may_contain_tag,
)
from .types import IMAGE

MAX_TEXT_LENGTH = (
    200_000  # characters of a text with such tags; longer ones exceed any context window
)
_MAX_TAGS = 2000  # tags of one text that are examined
_OURS = re.compile(r"<\s*image\s*/?\s*>|[\[{].*\d[\]}]|\{.*\}", re.IGNORECASE)


def count_placeholders(text: str, pictures: int) -> int:
    """The number of a question's `pictures` whose position it marks by itself."""
    if IMAGE not in text and not may_contain_tag(text):
        return 0
    return (
        PlaceholderNormalizer([""] * pictures, [text]).normalize_questions([text])[0].count(IMAGE)
    )


class PlaceholderNormalizer:
    """Replaces every placeholder in the questions of a row with `pictures` by `<image>`; `named`
    collects the images named in the texts.

    `texts` are all texts of the row: whether they are about HTML decides how its tags are read.
    """

    def __init__(self, pictures: Sequence[str], texts: list[str]) -> None:
        self.pictures = pictures
        self.named: list[str] = []
        self.faults: list[Fault] = []
        self.part_indices: list[int] = []
        self._web = HtmlContext(texts)

    def normalize_questions(self, texts: list[str]) -> list[str]:
        """The questions of a row with placeholders replaced, in order."""
        if any(self._is_too_long(text) for text in texts):
            return texts
        texts = [self._sure(text) if may_contain_tag(text) else text for text in texts]
        wanted = (len(self.pictures) or len(self.named)) - sum(text.count(IMAGE) for text in texts)
        done = []
        for text in texts:
            if may_contain_tag(text):
                tagged = TaggedText(text)
                self._refuse_media(tagged, "question")
                self._refuse(tagged, (OTHER_MEDIA, GROUNDING), "question")
                text, used = self._less_sure(tagged, wanted)
                wanted -= used
            done.append(text)
        first = self.part_indices[0] if self.part_indices else 1
        if first not in (0, 1) or self.part_indices != list(
            range(first, first + len(self.part_indices))
        ):
            self.faults.append(
                (
                    "foreign-tag",
                    (
                        f"numbers its pictures {', '.join(map(str, self.part_indices[:20]))[:60]},"
                        " wanted each once and in order"
                    ),
                )
            )
        return done

    def check_answer(self, text: str) -> None:
        """Report placeholders in an answer or system text, where none may be."""
        if not may_contain_tag(text) or self._is_too_long(text):
            return
        tagged = TaggedText(text)
        self._refuse(tagged, (CERTAIN_TAG, OTHER_MEDIA, GROUNDING), "answer")
        for match in FILE_NAME_TAG.finditer(text):
            if FILE_NAME.fullmatch(match[1].strip()) and not tagged.quoted(match):
                self._foreign(match.group(), "answer")
        for match in LIKELY_TAG.finditer(text):
            if (
                match.group() != IMAGE
                and "/" not in match.group()[:2]
                and tagged.apart(match)
                and not self._is_text(tagged, match)
            ):
                self._foreign(match.group(), "answer")
                break
        self._refuse_media(tagged, "answer")

    def _is_text(self, tagged: TaggedText, match: re.Match[str]) -> bool:
        """Whether a tag in an answer, where no placeholder belongs, is plain text."""
        return tagged.code(match) or self._web.is_likely

    def _is_too_long(self, text: str) -> bool:
        """Whether examining a text would take too long; it is then rejected."""
        if (
            len(text) <= MAX_TEXT_LENGTH
            and sum(1 for _ in POSSIBLE_TAG.finditer(text)) - text.count(IMAGE) <= _MAX_TAGS
        ):
            return False
        if not may_contain_tag(text):
            return False
        if len(text) > MAX_TEXT_LENGTH:
            self.faults.append(
                (
                    "too-long",
                    (
                        f"has {len(text):,} characters in a turn, with tags among them, wanted at"
                        f" most {MAX_TEXT_LENGTH:,}"
                    ),
                )
            )
        else:
            self.faults.append(("foreign-tag", f"holds more than {_MAX_TAGS} tags in a turn"))
        return True

    def _sure(self, text: str) -> str:
        tagged = TaggedText(text)
        text = FILE_NAME_TAG.sub(lambda match: self._name(tagged, match), text)
        unnamed = TaggedText(text)
        return CERTAIN_TAG.sub(lambda match: self._number(unnamed, match), text)

    def _name(self, tagged: TaggedText, match: re.Match[str]) -> str:
        if not FILE_NAME.fullmatch(match[1].strip()) or tagged.quoted(match):
            return match.group()
        self.named.append(match[1].strip())
        return IMAGE

    def _number(self, tagged: TaggedText, match: re.Match[str]) -> str:
        if tagged.quoted(match):
            return match.group()
        if (found := match["a"] or match["b"] or match["c"]) is not None:
            self.part_indices.append(int(found))
        # the pattern also matches the whitespace after a run of patches: keep it
        ends = match.group()[len(match.group().rstrip()) :]
        return IMAGE + ends

    def _less_sure(self, tagged: TaggedText, wanted: int) -> tuple[str, int]:
        """Replace `<Image>`, `<img>`, `[IMG]` for images that have no marker yet; without any
        images, also in placeholder position.
        """
        pieces, at, used = [], 0, 0
        matches = [
            *LIKELY_TAG.finditer(tagged.text),
            *(match for match in FILE_TAG.finditer(tagged.text) if file_name_in(match)),
        ]
        for match in sorted(matches, key=lambda match: match.start()):
            tag = match.group()
            if tag == IMAGE or "/" in tag[:2] or match.start() < at:
                continue
            is_one = (
                self._is_file(tagged, match, wanted - used)
                if match.re is FILE_TAG
                else self._is_one(tagged, match, wanted - used)
            )
            if is_one:
                pieces += [tagged.text[at : match.start()], IMAGE]
                at, used = match.end(), used + 1
            elif is_one is None:
                self._foreign(tag, "question")
        return "".join([*pieces, tagged.text[at:]]), used

    def _is_one(self, tagged: TaggedText, match: re.Match[str], wanted: int) -> bool | None:
        """Whether a tag stands for an image; None if it must be rejected."""
        tag, stands = match.group(), tagged.apart(match)
        ours = _OURS.fullmatch(tag) is not None
        if wanted > 0:
            if tagged.code(match) or (tag[0] == "{" and tagged.source_code):
                return False
            if stands or ours:
                self.part_indices += [
                    int(found) for found in (match["a"], match["b"]) if found is not None
                ]
            return True if stands or ours else None
        # `<Image>` is not an HTML tag: more of them than images is an error
        if self.pictures or self.named:
            return (
                None
                if stands
                and ours
                and tag[0] == "<"
                and not tagged.code(match)
                and not self._web.is_certain
                else False
            )
        if stands:
            return not (
                tagged.code(match) or self._web.is_certain or (tag[0] == "{" and tagged.source_code)
            )
        return (
            ours
            and tag[0] == "<"
            and " " not in tag
            and not self._web.is_likely
            and not tagged.code(match, loosely=False)
        )

    def _is_file(self, tagged: TaggedText, match: re.Match[str], wanted: int) -> bool | None:
        """Whether an HTML or Markdown image stands for the row's own image, which it must name;
        None, to reject it, if the row has no image.
        """
        if tagged.code(match, loosely=False) or self._web.is_certain or tagged.document:
            return False
        if (
            wanted > 0
            and len(self.pictures) == 1
            and _last_part(file_name_in(match)) == _last_part(self.pictures[0])
        ):
            return True
        if self._web.is_likely and not (tagged.apart(match) or tagged.last(match)):
            return False
        return None if wanted > 0 or not (self.pictures or self.named) else False

    def _refuse(
        self, tagged: TaggedText, patterns: tuple[re.Pattern[str], ...], where: str
    ) -> None:
        for pattern in patterns:
            for match in pattern.finditer(tagged.text):
                told = match.group()
                if told == IMAGE or (told.lower() == "<bbox>" and "</bbox>" in tagged.low):
                    continue
                if not tagged.quoted(match):
                    self._foreign(told, where)
                    break

    def _refuse_media(self, tagged: TaggedText, where: str) -> None:
        """Reject `<video>` and the like in placeholder position, or within a sentence of a row that
        is not about HTML.
        """
        for match in LIKELY_MEDIA.finditer(tagged.text):
            if tagged.apart(match) and not tagged.code(match):
                is_text = self._web.is_certain or (where == "answer" and self._web.is_likely)
            else:
                is_text = (
                    match.group()[0] == "["
                    or tagged.code(match, loosely=False)
                    or self._web.is_likely
                )
            if not is_text:
                self._foreign(match.group(), where)
                break

    def _foreign(self, tag: str, where: str) -> None:
        self.faults.append(
            (
                "foreign-tag",
                (
                    f"holds {quote(tag)} in {'an answer' if where == 'answer' else 'a question'},"
                    " a tag of other models"
                ),
            )
        )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]
