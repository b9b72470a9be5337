"""Every class of defect that the check knows, with what to do about it. The codes are stable: scripts may rely on them.

A *defect* rejects its row. A *note* is said and counted, and the row is used: what it names is handled (a picture is turned
upright) or harmless (an id that comes twice).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """`about` says what the class is, `do` the next step. `rejects` is False for a note."""

    about: str
    do: str
    rejects: bool = True


_MEND = "Mend or drop the row"
_PICTURE = "Save the picture again as JPEG or PNG, or drop the row"

KINDS: dict[str, Kind] = {
    # the file
    "malformed-json": Kind("text that is not JSON", "Mend the file at that line and column; of a list, nothing after it was read"),
    "malformed-table": Kind("a table that cannot be read on", "Write the table again; nothing after that row was read"),
    "not-utf8": Kind("bytes or code points that are no UTF-8", "Save the file as UTF-8"),
    "not-finite": Kind("NaN or Infinity, which JSON does not have", "Replace the number by null or drop the key"),
    "row-too-large": Kind("a row of more than 64 MB", "Keep pictures in files of their own, or drop the row"),
    # the shape of a row
    "unknown-shape": Kind("a row of no known shape", "See docs/formats.md for the shapes; mend or drop the row"),
    "no-turns": Kind("a row without turns", _MEND),
    "bad-turn": Kind("a turn that is not a role and a text", _MEND),
    "bad-picture-name": Kind("a picture that is neither a name nor bytes", _MEND),
    "unsupported-part": Kind("a part that is neither text nor picture", "Drop the row; phisense trains on pictures and text"),
    # its turns
    "unknown-role": Kind("a role that is not system, user or assistant", "Rename the role or drop the row"),
    "wrong-order": Kind("turns that do not alternate", "Reorder or join the turns, or drop the row"),
    "empty-turn": Kind("a turn without text", _MEND),
    "no-answer": Kind("no answer, so nothing would be supervised", "Give it an answer or drop the row"),
    "control-token": Kind("a forged control token", "Remove the token from the text; only the chat template may write it"),
    "image-in-answer": Kind("<image> outside a question", "Move <image> into a question, or remove it"),
    "image-count": Kind("another number of <image> than of pictures", "Write <image> once for each picture"),
    "long-answer": Kind("an absurdly long answer", "Cut the answer or drop the row"),
    "too-long": Kind(
        "longer than the length limit",
        "Shorten the first exchange, or raise train.<stage>.length; phisense never cuts through a picture",
    ),
    # the set
    "duplicate-row": Kind("an exact duplicate of an earlier row", "It is used twice; drop one of them", rejects=False),
    "leak": Kind("a picture that is also held out", "Drop the row, or take the picture out of the held-out set"),
    "near-leak": Kind("a picture that all but equals one held out", "Compare the two; drop the row if they show the same"),
    # its pictures
    "path-escape": Kind("a picture path that leaves its folder", "Name pictures relative to --images, without .."),
    "remote-url": Kind("a picture on the network", "Fetch it yourself and name the file; phisense opens no URL"),
    "bad-data-url": Kind("a data URL that holds no base64", "Encode the picture again or drop the row"),
    "missing-picture": Kind("a picture that is not there", "Name its folder with --images (repeatable), or drop the row"),
    "empty-picture": Kind("an empty picture file", "Fetch the picture again or drop the row"),
    "not-a-picture": Kind("a file that is no picture", _PICTURE),
    "truncated-picture": Kind("a picture that ends too early", "Fetch the picture again or drop the row"),
    "damaged-picture": Kind("a picture that cannot be decoded", _PICTURE),
    "too-many-pixels": Kind("more than 40 million pixels", "Make the picture smaller"),
    "too-many-bytes": Kind("a picture file of more than 32 MB", "Make the picture smaller"),
    "too-narrow": Kind("one side a hundred times the other", "Crop the picture or drop the row"),
    # notes
    "duplicate-id": Kind("the id of an earlier row about the same picture", "Usual in LLaVA sets; nothing to do", rejects=False),
    "id-conflict": Kind("the id of an earlier row about another picture", "Check that the ids mean what you think", rejects=False),
    "marker-added": Kind("no <image>", "It is put at the head of the first question", rejects=False),
    "unanswered": Kind("a last question without an answer", "It is read and teaches nothing", rejects=False),
    "shortened": Kind("exchanges beyond the length limit", "They are dropped whole, from the end; or raise the length", rejects=False),
    "more-captions": Kind("several captions", "The first is used; write a row for each to use all", rejects=False),
    "exif-rotation": Kind("turned by its EXIF tag", "It is turned upright", rejects=False),
    "cmyk": Kind("CMYK colours", "They are converted to RGB", rejects=False),
    "palette": Kind("palette colours", "They are converted to RGB", rejects=False),
    "16-bit": Kind("16 bits a channel", "They are scaled to 8", rejects=False),
    "alpha": Kind("transparency", "It is put on white", rejects=False),
    "animated": Kind("an animation", "Its first frame is used", rejects=False),
    "wrong-extension": Kind("a name that says another format than its bytes", "The bytes count", rejects=False),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect or note: `what` completes the sentence "row 7 ..."."""

    row: int
    id: str | None
    code: str
    what: str

    @property
    def rejects(self) -> bool:
        return KINDS[self.code].rejects

    def as_dict(self) -> dict[str, Any]:
        return {"row": self.row, "id": self.id, "code": self.code, "what": self.what, "do": KINDS[self.code].do}

    def __str__(self) -> str:
        return f"row {self.row}{f' (id {self.id})' if self.id is not None else ''} {self.what}"
