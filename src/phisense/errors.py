"""Every error that a user can cause, as one tree.

    PhisenseError                 exit code 1: the request was valid but could not be carried out
    ├── UsageError                exit code 2: the request itself is wrong
    │   └── RecipeError           unknown key, wrong type, value out of range
    ├── DataError                 a row, an image or a sound that cannot be used
    │   ├── ConversationError     a sample: its image tokens, roles, or supervised tokens
    │   ├── ImageError            unreadable, too large, not an image
    │   └── SoundError            unreadable, too long, silent
    ├── PartError                 a pretrained part is missing or of the wrong kind
    ├── ArtifactError             an artifact on disk is missing, unfinished, damaged, or made by
    │                             another encoder or recipe
    ├── TrainingError             a training run that must not start or continue (wrong LoRA match,
    │   │                         loss not finite)
    │   └── TerminatedError       exit code 143: SIGTERM was received, a checkpoint was written
    ├── MergeError                a merge that does not reproduce the trained model
    ├── DemoError                 a demo whose scores miss what it promises
    ├── ExportError               an exported file that does not agree with its model
    └── ChatError                 an empty question, a conversation longer than the context window

A message says what is wrong, what was found, what was expected and what to do next. The command
line prints it without a traceback; `--debug` shows one.
"""

from __future__ import annotations

import re

#: Lone surrogates, which cannot be encoded, and control characters except line breaks and tabs:
#: file names and text from data may contain them.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class PhisenseError(Exception):
    """Base class. `exit_code` is the exit code of the command line."""

    exit_code = 1

    def __init__(
        self, what: str, *, got: object = None, wanted: object = None, do: str | None = None
    ) -> None:
        sentence = what.rstrip(".")
        if got is not None:
            sentence += f"; got {got}"
        if wanted is not None:
            sentence += f"; wanted {wanted}"
        if do:
            sentence = f"{sentence}. {do.rstrip('.')}"
        sentence = sentence if sentence.endswith("?") else f"{sentence}."
        super().__init__(_UNFIT.sub(lambda found: ascii(found.group())[1:-1], sentence))


class UsageError(PhisenseError):
    """The request itself is wrong; exit code 2."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class DataError(PhisenseError):
    """A row, an image or a sound that cannot be used."""


class ConversationError(DataError):
    """A sample that cannot be used: its image tokens, roles or supervised tokens."""


class ImageError(DataError):
    """An image that is unreadable or too large, or a file that is not an image."""


class SoundError(DataError):
    """A sound that is unreadable, too long or silent."""


class PartError(PhisenseError):
    """A pretrained part that is missing or of the wrong kind."""


class ArtifactError(PhisenseError):
    """An artifact on disk that is missing, unfinished, damaged, or made by another encoder or
    recipe.
    """


class TrainingError(PhisenseError):
    """A training run that must not start or continue."""


class TerminatedError(TrainingError):
    """A training run that ended on SIGTERM after writing a checkpoint; exit code 143."""

    exit_code = 143


class MergeError(PhisenseError):
    """A merged model that does not reproduce the trained one."""


class DemoError(PhisenseError):
    """A demo whose scores miss what it promises."""


class ExportError(PhisenseError):
    """An exported file that does not agree with its model."""


class ChatError(PhisenseError):
    """An empty question, a conversation longer than the context window, or a server that fails."""
