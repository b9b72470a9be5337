"""A sound file in, what was said in it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps

from ..errors import PartError, SoundError
from .part import runnable_part
from .sounds import MOST_SECONDS, RATE, Sound, read_sound

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Transcript:
    """`text` as it was said, trimmed; `seconds` is the length of the sound."""

    text: str
    seconds: float


class Transcriber:
    """A Whisper, loaded once; `transcribe` may be called from several threads.

    `folder` is a Whisper in transformers' layout (converted once into `cache`), a CTranslate2 folder, or an id of the hub. It
    computes in float16 on a GPU and in int8 on a CPU, unless `compute` says otherwise. `longest` bounds a sound, in seconds;
    `threads` 0 leaves their number to CTranslate2. Raises PartError if there is no such part or it is not a Whisper.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        cache: Path | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        compute: str | None = None,
        longest: float = MOST_SECONDS,
        threads: int = 0,
    ) -> None:
        self.folder = runnable_part(folder, cache)
        self.longest = longest
        self.device = ("cuda" if ctranslate2.get_cuda_device_count() else "cpu") if device == "auto" else device
        self.compute = compute or ("float16" if self.device == "cuda" else "int8")
        try:
            self._model = _Whisper(str(self.folder), device=self.device, compute_type=self.compute, cpu_threads=threads)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise PartError(f"the speech part {folder} cannot be loaded on {self.device}", got=reason) from error

    @property
    def multilingual(self) -> bool:
        return bool(self._model.model.is_multilingual)

    def transcribe(
        self, sound: Path, *, name: str | None = None, language: str = "en", task: Task = "transcribe", vad: bool = True
    ) -> Transcript:
        """What is said in the file `sound`, which errors call `name` if that is given.

        `language` is spoken (an ISO code); task "translate" gives English for it, which needs a multilingual Whisper (turbo and
        distilled ones were never taught it). `vad` cuts out what is not speech (Silero's detector, shipped with faster-whisper):
        on silence a Whisper makes words up. Raises SoundError if the sound cannot be used or nothing is said in it.
        """
        if not self.multilingual and (language, task) != ("en", "transcribe"):
            asked = f"{task} from {language}"
            raise PartError("this speech part hears English only", got=asked, do="Use a multilingual Whisper")
        called = name or sound.name
        samples = read_sound(sound, name=called, longest=self.longest)
        text = self._hear(samples, called, language, task, vad)
        if not text:
            raise SoundError(f"no words were heard in {called}", do="Speak up, nearer to the microphone")
        return Transcript(text, len(samples) / RATE)

    def _hear(self, samples: Sound, called: str, language: str, task: Task, vad: bool) -> str:
        level = samples * np.float32(0.5 / np.abs(samples).max())  # the speech detector is deaf to soft voices
        if vad:
            spoken = get_speech_timestamps(level, VadOptions())
            if not spoken:
                got = f"{len(samples) / RATE:.1f} s of other sound"
                raise SoundError(f"nobody speaks in {called}", got=got, do="Check the microphone and speak again")
            level = np.concatenate([level[part["start"] : part["end"]] for part in spoken])
        segments, _ = self._model.transcribe(
            level,
            language=language,
            task=task,
            beam_size=5,
            temperature=0.0,  # the default retries with random sampling
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


class _Whisper(WhisperModel):
    """faster-whisper pads every window to 3,000 frames; here it is cut back to the length that the part's own front end names."""

    def encode(self, features: Any) -> Any:
        return super().encode(features[..., : self.feature_extractor.nb_max_frames])
