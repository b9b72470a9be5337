"""Every class of defect that `check` reports, with the remedy. The codes are stable: scripts may
rely on them.

A *defect* rejects its row. A *note* is reported and counted, and the row is used: the condition is
handled (an image is rotated upright) or harmless (a duplicate id).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..console import escape_controls
from ..pipeline.results import DataFinding
from ..safe_parsing import escape, truncate

_MAX_LENGTH = 1000  # characters of a message


@dataclass(frozen=True, slots=True)
class DefectKind:
    """`about` describes the class, `do` is the next step. `rejects` is False for a note."""

    about: str
    do: str
    rejects: bool = True


_FIX_ROW = "Mend or drop the row"
_FIX_IMAGE = "Save the picture again as JPEG or PNG, or drop the row"

DEFECT_KINDS: dict[str, DefectKind] = {
    # the file
    "malformed-json": DefectKind(
        "text that is not JSON",
        "Mend the file at that line and column; of a list, nothing after it was read",
    ),
    "malformed-table": DefectKind(
        "a table that cannot be read on", "Write the table again; nothing after that row was read"
    ),
    "not-utf8": DefectKind("bytes or code points that are no UTF-8", "Save the file as UTF-8"),
    "not-finite": DefectKind(
        "NaN or Infinity, which JSON does not have", "Replace the number by null or drop the key"
    ),
    "row-too-large": DefectKind(
        "a row of more than 64 MB", "Keep pictures in files of their own, or drop the row"
    ),
    # the shape of a row
    "unknown-shape": DefectKind(
        "a row of no known shape", "See docs/formats.md for the shapes; mend or drop the row"
    ),
    "no-turns": DefectKind("a row without turns", _FIX_ROW),
    "bad-turn": DefectKind("a turn that is not a role and a text", _FIX_ROW),
    "bad-picture-name": DefectKind("a picture that is neither a name nor bytes", _FIX_ROW),
    "unsupported-part": DefectKind(
        "a part that is neither text nor picture",
        "Drop the row; phisense trains on pictures and text",
    ),
    # its keys, options and tags
    "unsupported-key": DefectKind(
        "a key for what phisense does not train on",
        "Drop the row, or the key if the row means the same without it",
    ),
    "ambiguous-keys": DefectKind(
        "two keys for the same that say different things", "Keep the one that is meant"
    ),
    "bad-cell": DefectKind("text that should hold a list or a mapping", "Write the cell as JSON"),
    "bad-options": DefectKind(
        "options with a gap, or an answer that is none of them",
        "Mend the options or the answer; numbers count from 0",
    ),
    "bad-weight": DefectKind(
        "a weight that is neither 0 nor 1", "Write 0 or 1, or give the set a weight in the recipe"
    ),
    "foreign-tag": DefectKind(
        "a tag of other models",
        "Write <image> for a picture and words for anything else, or drop the row",
    ),
    # its turns
    "unknown-role": DefectKind(
        "a role that is not system, user or assistant", "Rename the role or drop the row"
    ),
    "wrong-order": DefectKind(
        "turns that do not alternate", "Reorder or join the turns, or drop the row"
    ),
    "empty-turn": DefectKind("a turn without text", _FIX_ROW),
    "no-answer": DefectKind(
        "no answer, so nothing would be supervised", "Give it an answer or drop the row"
    ),
    "control-token": DefectKind(
        "a forged control token",
        "Remove the token from the text; only the chat template may write it",
    ),
    "image-in-answer": DefectKind(
        "<image> outside a question", "Move <image> into a question, or remove it"
    ),
    "image-count": DefectKind(
        "another number of <image> than of pictures", "Write <image> once for each picture"
    ),
    "long-answer": DefectKind("an absurdly long answer", "Cut the answer or drop the row"),
    "too-long": DefectKind(
        "longer than the length limit",
        "Shorten the first exchange, or raise train.<stage>.max_length; phisense never cuts"
        " through a"
        " picture",
    ),
    # the set
    "duplicate-row": DefectKind(
        "an exact duplicate of an earlier row", "It is used twice; drop one of them", rejects=False
    ),
    "leak": DefectKind(
        "a picture that is also held out",
        "Drop the row, or take the picture out of the held-out set",
    ),
    "near-leak": DefectKind(
        "a picture that all but equals one held out",
        "Compare the two; drop the row if they show the same",
    ),
    # its images
    "path-escape": DefectKind(
        "a picture path that leads to no file", "Name pictures relative to --images"
    ),
    "ambiguous-picture": DefectKind(
        "a picture name that several files answer to", "Name it as it is written, with its folder"
    ),
    "remote-url": DefectKind(
        "a picture on the network", "Fetch it yourself and name the file; phisense opens no URL"
    ),
    "bad-data-url": DefectKind(
        "a data URL that holds no base64", "Encode the picture again or drop the row"
    ),
    "missing-picture": DefectKind(
        "a picture that is not there", "Name its folder with --images (repeatable), or drop the row"
    ),
    "empty-picture": DefectKind("an empty picture file", "Fetch the picture again or drop the row"),
    "not-a-picture": DefectKind("a file that is no picture", _FIX_IMAGE),
    "truncated-picture": DefectKind(
        "a picture that ends too early", "Fetch the picture again or drop the row"
    ),
    "damaged-picture": DefectKind("a picture that cannot be decoded", _FIX_IMAGE),
    "blank-picture": DefectKind(
        "a picture on which there is nothing to see",
        "Look at it: save it anew from its source, or drop the row",
    ),
    "too-many-pixels": DefectKind("more than 40 million pixels", "Make the picture smaller"),
    "too-many-bytes": DefectKind("a picture file of more than 32 MB", "Make the picture smaller"),
    "too-narrow": DefectKind(
        "one side a hundred times the other", "Crop the picture or drop the row"
    ),
    # notes of the file
    "other-encoding": DefectKind(
        "text in another encoding than UTF-8",
        "See that its letters are right, or save it as UTF-8",
        rejects=False,
    ),
    "wrapped": DefectKind(
        "rows inside of an object",
        "They are read from there; see that they are the ones that are meant",
        rejects=False,
    ),
    # notes
    "unread-key": DefectKind(
        "a key that is not read",
        "Nothing, if the rows mean the same without it; docs/formats.md lists what is read",
        rejects=False,
    ),
    "options-added": DefectKind(
        "options that the question did not name",
        "They are put behind it, one a line",
        rejects=False,
    ),
    "found-by-tail": DefectKind(
        "a picture found by the end of its path",
        "Compare one; name the folder that its path begins in with --images",
        rejects=False,
    ),
    "joined-turns": DefectKind(
        "turns of one role in a row", "They are joined as one", rejects=False
    ),
    "duplicate-id": DefectKind(
        "the id of an earlier row about the same picture",
        "Usual in LLaVA sets; nothing to do",
        rejects=False,
    ),
    "id-conflict": DefectKind(
        "the id of an earlier row about another picture",
        "Check that the ids mean what you think",
        rejects=False,
    ),
    "marker-added": DefectKind(
        "no <image>", "It is put at the head of the first question", rejects=False
    ),
    "unanswered": DefectKind(
        "a last question without an answer", "It is read and teaches nothing", rejects=False
    ),
    "shortened": DefectKind(
        "exchanges beyond the length limit",
        "They are dropped whole, from the end; or raise max_length",
        rejects=False,
    ),
    "more-captions": DefectKind(
        "several captions", "The first is used; write a row for each to use all", rejects=False
    ),
    "one-colour": DefectKind(
        "a small picture of one bright colour",
        "Nothing, if it is meant to show a colour",
        rejects=False,
    ),
    "exif-rotation": DefectKind("turned by its EXIF tag", "It is turned upright", rejects=False),
    "cmyk": DefectKind("CMYK colours", "They are converted to RGB", rejects=False),
    "palette": DefectKind("palette colours", "They are converted to RGB", rejects=False),
    "16-bit": DefectKind(
        "more than 8 bits a channel",
        "They are scaled to 8, stretched if they fill less than half of their range",
        rejects=False,
    ),
    "alpha": DefectKind("transparency", "It is put on white", rejects=False),
    "animated": DefectKind("an animation", "Its first frame is used", rejects=False),
    "wrong-extension": DefectKind(
        "a name that says another format than its bytes", "The bytes count", rejects=False
    ),
}


#: Notes that are aggregated over the data set: one finding, with the number of its rows.
AGGREGATED = ("unread-key", "found-by-tail")


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect or note: `what` completes the sentence "row 7 ...", or "the file ..." if the row
    is 0.

    An aggregated note has the number of `rows` concerned; `row` is the first of them, and `what`
    describes one of them. Control characters and lone surrogates in `what` are escaped, so that it
    can be written anywhere.
    """

    row: int
    id: str | None
    code: str
    what: str
    rows: int = 1

    def __post_init__(self) -> None:
        if not self.what.isprintable() or len(self.what) > _MAX_LENGTH:
            object.__setattr__(
                self,
                "what",
                escape_controls(
                    self.what if len(self.what) <= _MAX_LENGTH else truncate(self.what), lines=False
                ),
            )

    @property
    def rejects(self) -> bool:
        """Whether the row is rejected; otherwise the finding is only reported."""
        return DEFECT_KINDS[self.code].rejects

    def to_finding(self) -> DataFinding:
        """The finding with what to do about it, as in `check --json` and `rejects.jsonl`."""
        return DataFinding(
            row=self.row,
            id=self.id,
            code=self.code,
            what=self.what,
            do=DEFECT_KINDS[self.code].do,
            rows=self.rows if self.code in AGGREGATED else None,
        )

    def __str__(self) -> str:
        if not self.row:
            return f"the file {self.what}"
        if self.code in AGGREGATED:
            return (
                f"{self.rows:,} rows have{self.what.removeprefix('has')}"
                if self.rows > 1
                else f"1 row {self.what}"
            )
        return (
            f"row {self.row}{f' (id {escape(self.id)})' if self.id is not None else ''} {self.what}"
        )
