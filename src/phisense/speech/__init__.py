"""Speech input: transcribes a recording, or translates it into English, with Whisper on CTranslate2
(faster-whisper).
"""

from .audio import read_audio
from .transcriber import Transcriber
from .transcript import Transcript

__all__ = ["Transcriber", "Transcript", "read_audio"]
