"""Every error that a user can cause, as one tree.

    PhisenseError                 exit code 1: the request was understood and could not be carried out
    ├── UsageError                exit code 2: the request itself is wrong
    │   └── RecipeError           unknown key, wrong type, value out of range
    ├── DataError                 a row, a picture or a sound that cannot be used
    │   ├── ConversationError     a sample: its slots, roles, or supervised tokens
    │   ├── PictureError          unreadable, too large, not a picture
    │   └── SoundError            unreadable, too long, silent
    ├── PartError                 a pretrained part is missing or of the wrong kind
    ├── ArtefactError             something on disk is missing, unfinished, damaged, or made by another encoder or recipe
    ├── TrainingError             a training run that must not start or go on (wrong LoRA match, loss not finite)
    │   └── TerminatedError       exit code 143: SIGTERM came, a checkpoint was written
    ├── MergeError                a merge that lost what was learned
    ├── DemoError                 a demo whose figures are not what it promises
    ├── ExportError               an export that does not say what its model says
    └── ChatError                 an empty question, a conversation longer than the model's window

A message says what is wrong, what was found, what was wanted and what to do next. The command line prints it without a
traceback; `--debug` shows one.
"""

from __future__ import annotations


class PhisenseError(Exception):
    """Base class. `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, wanted: object = None, do: str | None = None) -> None:
        sentence = what.rstrip(".")
        if got is not None:
            sentence += f"; got {got}"
        if wanted is not None:
            sentence += f"; wanted {wanted}"
        if do:
            sentence = f"{sentence}. {do.rstrip('.')}"
        super().__init__(sentence if sentence.endswith("?") else f"{sentence}.")


class UsageError(PhisenseError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(PhisenseError):
    pass


class ConversationError(DataError):
    pass


class PictureError(DataError):
    pass


class SoundError(DataError):
    pass


class PartError(PhisenseError):
    pass


class ArtefactError(PhisenseError):
    pass


class TrainingError(PhisenseError):
    pass


class TerminatedError(TrainingError):
    exit_code = 143


class MergeError(PhisenseError):
    pass


class DemoError(PhisenseError):
    pass


class ExportError(PhisenseError):
    pass


class ChatError(PhisenseError):
    pass
