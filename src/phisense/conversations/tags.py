"""Tags in a text: patterns of other projects' placeholders, and where a tag is in its text.

`TaggedText` computes everything that is needed for its tags once, so that the time does not grow
with tags times length.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cached_property

from .types import IMAGE

_WORD = r"(?:image|img|picture|photo|pic)"
#: May also be HTML, code or words in brackets.
LIKELY_TAG = re.compile(
    rf"<\s*/?{_WORD}\s*/?>|\[{_WORD}(?:[ -]?(?P<a>\d{{1,3}}))?\]"
    rf"|\{{{_WORD}(?:[ _-]?(?P<b>\d{{1,3}}))?\}}",
    re.IGNORECASE,
)
#: Stands for an image in any position. A run of patch tokens is one image.
CERTAIN_TAG = re.compile(
    r"(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?"
    r"|\(<image>\s*\./\s*</image>\)|<image>\s*(?:\./\s*)?</image>|<img>\s*<imagehere>\s*</img>"
    r"|<im_start>\s*(?:<image>\s*|(?:<im_patch>\s*)+)<im_end>|(?:<im_patch>\s*)+(?:<im_end>)?"
    r"|<img>\s*(?:<img_context>\s*)+</img>|(?:<img_context>)+|(?:<image_soft_token>)+"
    r"|(?:<image_patch>)+"
    rf"|<\|{_WORD}[_ -]?(?:pad|placeholder|tokens?|(?P<a>\d{{1,3}}))?\|>"
    rf"|<{_WORD}(?:[_ -]?|:\s?)"
    r"(?:placeholder|tokens?|pad|here|context|patch|soft_token|(?P<b>\d{1,3}))>|<start_of_image>"
    rf"|\[{_WORD}_(?:placeholder|tokens?|(?P<c>\d{{1,3}}))\]",
    re.IGNORECASE,
)
FILE_NAME_TAG = re.compile(r"<img>([^<>\r\n]{1,4000})</img>", re.IGNORECASE)
#: An HTML or Markdown image; `a` are its attributes, `b` is its file.
FILE_TAG = re.compile(
    r"<img\s(?P<a>[^<>]{1,4000})>"
    r"|!\[[^\]\r\n]{0,300}\]\((?P<b>[^()\s]{1,2000})(?:\s[^()\r\n]{0,200})?\)",
    re.IGNORECASE,
)
_SOURCE = re.compile(r"\bsrc\s*=\s*[\"']?([^\"'\s]+)", re.IGNORECASE)
FILE_NAME = re.compile(
    r".*\.(?:jpe?g|png|webp|bmp|gif|tiff?|heic|avif)|(?:data|https?):.*|[^\s]+/[^\s]+",
    re.IGNORECASE,
)
_MEDIA = r"(?:video|audio|speech|sound)"
OTHER_MEDIA = re.compile(
    rf"<\|(?:vision_start\|><\|)?{_MEDIA}(?:_(?:pad|placeholder|token|bos|start|\d{{1,3}}))?\|>"
    rf"|<{_MEDIA}(?:[_ -]?|:\s?)(?:placeholder|tokens?|pad|here|\d{{1,3}})>"
    r"|<speech>\s*<speechhere>\s*</speech>",
    re.IGNORECASE,
)
LIKELY_MEDIA = re.compile(rf"<{_MEDIA}>|\[{_MEDIA}\]", re.IGNORECASE)
GROUNDING = re.compile(
    r"<box>(?=\s*[\[(\d])|<quad>(?=\s*[\[(\d])|<ref>[^<]*</ref>(?=\s*<\|?(?:box|quad|bbox|det|"
    r"point|poly))|<bbox>|<ref[-_]object>"
    r"|<loc_?\d{1,4}>|<patch_index_\d+>|\[SEG\]",
    re.DOTALL | re.IGNORECASE,
)
_ALONE = re.compile(
    re.sub(r"[?]P<.>", "", "|".join(x.pattern for x in (LIKELY_TAG, LIKELY_MEDIA, FILE_TAG))),
    re.IGNORECASE,
)
#: Words after a tag that mention it as a tag.
_SPOKEN_OF = re.compile(
    r"[`'\"”)]|\s*(?:html\s+)?(?:tags?|elements?|attributes?|components?|markup|is|in|inside|with|"
    r"does|won't|has|and|or|vs)\b",
    re.IGNORECASE,
)
_SPOKEN_OF_FOR_SURE = re.compile(
    r"[`'\"”)]|\s*(?:html\s+)?(?:tags?|elements?|attributes?|components?|markup|does|do|won't|"
    r"vs)\b",
    re.IGNORECASE,
)
_HTML = re.compile(
    r"\bx?html5?\b|\bcss3?\b|</?(?:div|span|p|a|br|hr|h[1-6]|ul|ol|li|table|tr|td|th|thead|tbody|"
    r"form|input|button|label|select|option|textarea"
    r"|html|head|body|title|meta|link|script|style|nav|header|footer|section|article|aside|main"
    r"|figure|figcaption|iframe|canvas|svg|source|track"
    r"|b|i|u|em|strong|code|pre|blockquote|sup|sub|small|dl|dt|dd|embed|object|template|slot"
    r"|details|summary|dialog|center|font)(?:\s[^<>]{0,200})?/?>"
    rf"|<{_MEDIA}\s+\w|</{_MEDIA}>|<!doctype",
    re.IGNORECASE,
)
_WEB = re.compile(
    r"\b(?:tags?|markup|javascript|typescript|react|vue|jsx|browsers?|web\s?pages?|web\s?sites?|"
    r"components?|dom|svg|xml"
    r"|safari|chrome|firefox|markdown|readme)\b",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"^#{1,6}\s|(?<!!)\[[^\]\r\n]{1,300}\]\(", re.MULTILINE)
_SOURCE_CODE = re.compile(
    r"\bf[\"']|\$\{|```|\b(?:def|import|return|const|function|class)\s|;\s*$", re.MULTILINE
)
#: Any possible tag, for a quick first search.
POSSIBLE_TAG = re.compile(
    r"<[\s|/]*(?:im|picture|photo|pic>|pic[_:\d -]"
    r"|start_of_im|vision|video|audio|speech|sound|box|quad|ref|bbox|loc|patch_ind)"
    r"|\[\s*(?:im|pic|photo|video|audio|speech|sound|seg\])|\{(?:im|pic|photo)"
    r"|!\[[^\]\r\n]{0,300}\]\(",
    re.IGNORECASE,
)


def may_contain_tag(text: str) -> bool:
    """Whether a text with `<`, `[` or `{` may contain a tag other than `<image>`."""
    return (
        POSSIBLE_TAG.search(text if IMAGE not in text else text.replace(IMAGE, "")) is not None
        or "</image>" in text
        or "<im_end>" in text
    )


def file_name_in(match: re.Match[str]) -> str:
    """The file name in a match of `FILE_TAG`; empty if it is not a file name."""
    source = match["b"] or ((found := _SOURCE.search(match["a"])) and found[1]) or ""
    return source if FILE_NAME.fullmatch(source) else ""


class HtmlContext:
    """Whether the texts of a row are about HTML, so that tags are plain text: `is_certain`, or
    `is_likely` by ambiguous words.
    """

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    @cached_property
    def is_certain(self) -> bool:
        """Whether a text of the row is certainly about HTML."""
        return any(_HTML.search(text) for text in self._texts)

    @cached_property
    def is_likely(self) -> bool:
        """Whether a text of the row may be about web pages."""
        return self.is_certain or any(_WEB.search(text) for text in self._texts)


class TaggedText:
    """A text with cached information about its tags."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def low(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @cached_property
    def _fences(self) -> list[int]:
        return [match.end() for match in re.finditer("```", self.text)]

    @cached_property
    def document(self) -> bool:
        """Whether the text is a Markdown document, whose images are part of it."""
        return _MARKDOWN.search(self.text) is not None

    @cached_property
    def source_code(self) -> bool:
        """Whether the text looks like source code."""
        return _SOURCE_CODE.search(self.text) is not None

    def quoted(self, match: re.Match[str]) -> bool:
        """Whether a tag follows a quotation mark or is in a code block."""
        before = self.text[max(0, match.start() - 1) : match.start()]
        return (before != "" and before in "`'\"“") or bisect_left(
            self._fences, match.start() + 1
        ) % 2 == 1

    def code(self, match: re.Match[str], *, loosely: bool = True) -> bool:
        """Whether a tag is quoted, mentioned as a tag (`loosely`: also by weaker wording), closed
        by its counterpart, or part of code.
        """
        return (
            self.quoted(match)
            or self._closed(match)
            or self._in_code(match)
            or self._spoken_of(match, loosely=loosely)
        )

    def _closed(self, match: re.Match[str]) -> bool:
        name = re.sub(r"\W", "", match.group()).lower()
        return name in self._closings

    @cached_property
    def _closings(self) -> frozenset[str]:
        return frozenset(re.findall(r"[<\[]/(\w+)[>\]]", self.low))

    def _spoken_of(self, match: re.Match[str], *, loosely: bool) -> bool:
        return (_SPOKEN_OF if loosely else _SPOKEN_OF_FOR_SURE).match(
            self.text, match.end()
        ) is not None

    def _in_code(self, match: re.Match[str]) -> bool:
        """Matches such as `x[image]`, `List<Image>`, `${image}`, `[image](a)`, `[image] = y`."""
        if not (bracket := match.group()[0] in "[{") and match.end() - match.start() > 20:
            return False
        before = self.text[max(0, match.start() - 1) : match.start()]
        after = self.text[match.end() : match.end() + 1]
        if not bracket:
            return before.isalnum() and before.isascii()
        return (before != "" and (before.isalnum() or before in "_$\\./=[{")) or (
            after != "" and after in "[({=_/"
        )

    def apart(self, match: re.Match[str]) -> bool:
        """Whether a tag is at the start of the text, after its last sentence, or alone on a line;
        neighboring placeholders are ignored.
        """
        return match.start() in self._apart

    def last(self, match: re.Match[str]) -> bool:
        """Whether only placeholders follow."""
        return match.start() in self._last

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return [match.span() for match in _ALONE.finditer(self.text)]

    @cached_property
    def _gaps(self) -> list[str]:
        """The text before each span, and after the last one."""
        starts = [0, *(end for _, end in self._spans)]
        ends = [*(start for start, _ in self._spans), len(self.text)]
        return [self.text[start:end] for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def _last(self) -> frozenset[int]:
        found = []
        for (start, _), gap in zip(reversed(self._spans), reversed(self._gaps), strict=False):
            if gap.strip():
                break
            found.append(start)
        return frozenset(found)

    @cached_property
    def _apart(self) -> frozenset[int]:
        spans, gaps = self._spans, self._gaps
        before = _borders([gap.rpartition("\n") for gap in gaps[:-1]])
        behind = _borders([gap.partition("\n")[::-1] for gap in reversed(gaps[1:])])[::-1]
        found = {
            start
            for (start, _), left, right in zip(spans, before, behind, strict=True)
            if left and right
        }
        for (start, _), gap in zip(spans, gaps, strict=False):
            if gap.strip():
                break
            found.add(start)
        if self._last:
            first = min(self._last)
            if self.text[max(0, first - 100) : first].rstrip().endswith((".", "?", "!", ":")):
                found |= self._last
        return frozenset(found)


def _borders(gaps: list[tuple[str, str, str]]) -> list[bool]:
    """For each gap (text beyond the line break, line break, text beside the tag), in order: whether
    only tags are between the tag and the line break.
    """
    done: list[bool] = []
    for _, border, beside in gaps:
        done.append(not beside.strip() and (border != "" or not done or done[-1]))
    return done
