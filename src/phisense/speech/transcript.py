"""What was understood of a recording, and how reliable it is."""

from __future__ import annotations

from dataclasses import dataclass

from .languages import LANGUAGES

CONFIDENT_PROBABILITY = 0.5  # a language detected with lower probability is uncertain


@dataclass(frozen=True, slots=True)
class Transcript:
    """A transcript: `text` is trimmed, in the spoken language, or in English if `translated`;
    `seconds` is the duration of the audio.

    `language` is the code of the spoken language; `probability` is the model's own for it, or None
    if the caller specified it. `truncated` is set if the recording ends before its audio does;
    `repetitive` if a part of the text repeats itself even when decoded again; `channel_count` as in
    `audio.Recording`.
    """

    text: str
    seconds: float
    language: str = "en"
    probability: float | None = None
    translated: bool = False
    truncated: bool = False
    repetitive: bool = False
    channel_count: int | None = None

    @property
    def is_uncertain(self) -> bool:
        """Whether the detected language is uncertain."""
        return self.probability is not None and self.probability < CONFIDENT_PROBABILITY

    @property
    def language_description(self) -> str:
        """For display: "German (97 %), put into English"; "perhaps German (41 %), put into
        English".
        """
        sure = "" if self.probability is None else f" ({self.probability:.0%})".replace("%", " %")
        named = LANGUAGES.get(self.language, self.language) + sure
        return (
            ("perhaps " if self.is_uncertain else "")
            + named
            + (", put into English" if self.translated else "")
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings for the reader about the reliability of the text."""
        found = []
        if self.truncated:
            found.append(
                f"The recording is cut off: {self.seconds:.1f} s of it were there to be heard."
            )
        if self.channel_count is not None:
            found.append(
                f"The {self.channel_count} channels of the recording cancel each other out, so"
                " the loudest"
                " alone was heard."
            )
        if self.is_uncertain:
            found.append("The language is a guess: name it, if it is another one.")
        if self.repetitive:
            found.append(
                "The speech part repeats itself in some of this, which may not have been said."
            )
        return found
