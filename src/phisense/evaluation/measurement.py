"""How an evaluation was measured: the content of `about` in `scores.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..pipeline.json_fields import JsonObject, as_object, objects, optional, required
from .training_facts import ComputedIn

SCORES = "scores.json"
_ABOUT = f"{SCORES}: about"


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """A file of questions, or a hub id; `sha256` is None if it was not recorded."""

    name: str
    sha256: str | None = None

    def to_dict(self) -> dict[str, str]:
        """`{"name", "sha256"}`, the latter if it is known."""
        return {"name": self.name} | ({} if self.sha256 is None else {"sha256": self.sha256})

    @classmethod
    def from_dict(cls, document: object, source: str = SCORES) -> QuestionFile:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, source)
        return cls(required(found, "name", str, source), optional(found, "sha256", str, source))


@dataclass(frozen=True, slots=True)
class Measurement:
    """How an evaluation was measured: `record` is the JSON as written, with typed access to the
    fields that the code uses. Empty if nothing was recorded.
    """

    record: JsonObject = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The name of the model."""
        return optional(self.record, "model", str, _ABOUT)

    @property
    def fingerprint(self) -> str | None:
        """A digest of the model's files; None for a model behind a server."""
        return optional(self.record, "fingerprint", str, _ABOUT)

    @property
    def seed(self) -> int:
        """The seed of the image shuffling and of the bootstrap."""
        return optional(self.record, "seed", int, _ABOUT) or 0

    @property
    def batch_size(self) -> int | None:
        """The number of questions in a batch."""
        return optional(self.record, "batch", int, _ABOUT)

    @property
    def max_new_tokens(self) -> int | None:
        """The maximum number of tokens of an answer."""
        return optional(self.record, "max_new_tokens", int, _ABOUT)

    @property
    def by_content(self) -> str:
        """How answers out of form were scored by content: by the model's likelihoods, or, of an
        engine that tells none, by the constant.
        """
        told = optional(self.record, "by_content", str, _ABOUT)
        return {
            "likelihood": "the likeliest of the question's answers",
            "constant": "the constant, since this engine tells no likelihoods",
        }.get(told or "", "as it was not recorded")

    @property
    def data(self) -> tuple[QuestionFile, ...]:
        """The files of the questions."""
        return tuple(
            QuestionFile.from_dict(one, _ABOUT) for one in objects(self.record, "data", _ABOUT)
        )

    @property
    def arithmetic(self) -> ComputedIn | None:
        """The arithmetic that torch used; None for other engines."""
        recorded = optional(self.record, "arithmetic", dict, _ABOUT)
        if recorded is None:
            return None
        return ComputedIn.from_dict(recorded, f"{_ABOUT}.arithmetic")

    @property
    def prompt(self) -> str | None:
        """The prompt of the first question."""
        return optional(self.record, "prompt", str, _ABOUT)

    @property
    def seconds(self) -> float | None:
        """The duration of the evaluation in seconds; of a resumed one, since it was resumed."""
        return optional(self.record, "seconds", float, _ABOUT)

    @property
    def answers_kept(self) -> int:
        """The number of answers reused from an interrupted evaluation."""
        return optional(self.record, "answers_kept", int, _ABOUT) or 0

    def to_dict(self) -> dict[str, object]:
        """`record`, unchanged."""
        return dict(self.record)
