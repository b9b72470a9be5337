"""Hearing: a sound file becomes English text, by a Whisper that runs in CTranslate2 through faster-whisper."""

from .sounds import read_sound
from .transcriber import Transcriber, Transcript

__all__ = ["Transcriber", "Transcript", "read_sound"]
