"""A sound file in, what was said in it out: in English, whatever it was said in."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps

from ..artefact import read_json
from ..errors import PartError, UsageError
from .languages import LANGUAGES
from .part import depths, runnable_part
from .sounds import MOST_SECONDS, RATE, Sound, nothing_heard, read_sound

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Transcript:
    """`text` as it was said or, if `translated`, in English, trimmed; `seconds` is the length of the sound.

    `language` is the code of what was spoken; `probability` is the part's own for it, or None where it was told.
    """

    text: str
    seconds: float
    language: str = "en"
    probability: float | None = None
    translated: bool = False

    @property
    def spoken(self) -> str:
        """For people: "German (97 %), put into English"."""
        sure = "" if self.probability is None else f" ({self.probability:.0%})".replace("%", " %")
        return LANGUAGES.get(self.language, self.language) + sure + (", put into English" if self.translated else "")


class Transcriber:
    """A Whisper, loaded once; `transcribe` may be called from several threads.

    `folder` is a Whisper in transformers' layout (converted once into `cache`), a CTranslate2 folder, or an id of the hub. It
    computes in float16 on a GPU and in int8 on a CPU, unless `compute` says otherwise. `longest` bounds a sound, in seconds;
    `threads` 0 leaves their number to CTranslate2; `beams` is the width of the search, 1 takes the likeliest word each time.
    Raises PartError if there is no such part or it is not a Whisper.
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
        beams: int = 5,
    ) -> None:
        self.folder = runnable_part(folder, cache)
        self.longest, self.beams = longest, beams
        self.device = ("cuda" if ctranslate2.get_cuda_device_count() else "cpu") if device == "auto" else device
        self.compute = compute or ("float16" if self.device == "cuda" else "int8")
        try:
            self._model = _Whisper(str(self.folder), device=self.device, compute_type=self.compute, cpu_threads=threads)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise PartError(f"the speech part {folder} cannot be loaded on {self.device}", got=reason) from error
        self._tells_languages = bool(read_json(self.folder / "config.json").get("lang_ids"))
        self._untaught = _untaught(Path(folder).name, *depths(self.folder))

    @property
    def multilingual(self) -> bool:
        return bool(self._model.model.is_multilingual)

    @property
    def translates(self) -> bool:
        """Whether it puts other languages into English."""
        return self.multilingual and self._untaught is None

    def transcribe(
        self, sound: Path, *, name: str | None = None, language: str | None = None, task: Task | None = None, vad: bool = True
    ) -> Transcript:
        """What is said in the file `sound`, which errors call `name` if that is given.

        `language` is what is spoken, as Whisper's code for it; None lets a multilingual part find out. `task` "transcribe" leaves
        the text in that language, "translate" gives English, and None translates what is not English. `vad` cuts out what is
        not speech (Silero's detector, shipped with faster-whisper): on silence a Whisper makes words up.

        Raises SoundError if the sound cannot be used or nothing is said in it; PartError if the part does not know the language,
        or was never taught to translate.
        """
        if language is not None and language not in LANGUAGES:
            raise UsageError("no such language", got=language, wanted=f"a code such as {', '.join(list(LANGUAGES)[:6])}")
        if not self.multilingual and (language or "en", task or "transcribe") != ("en", "transcribe"):
            asked = f"{task or 'translate'} from {LANGUAGES[language or 'en']}"
            raise PartError("this speech part hears English only", got=asked, do="Use a multilingual Whisper such as openai/whisper-small")
        if task == "translate":
            self._check_translates(language)
        called = name or sound.name
        samples = read_sound(sound, name=called, longest=self.longest)
        windows = self._windows(samples, called, vad)
        language, probability = self._language(windows[0], language)
        if task is None:
            task = "transcribe" if language == "en" else "translate"
        if task == "translate":
            self._check_translates(language)
        text = " ".join(filter(None, (self._hear(window, language, task) for window in windows)))
        self._model.forget()
        if not text:
            raise nothing_heard(called, "speech without words")
        return Transcript(text, len(samples) / RATE, language, probability, task == "translate")

    def _check_translates(self, language: str | None) -> None:
        if not self.translates:
            what = "this speech part was never taught to translate into English"
            got = f"{LANGUAGES[language] if language else 'another language'} for {self._untaught}"
            raise PartError(what, got=got, do="Use openai/whisper-small, -medium or -large-v3, which were")

    def _windows(self, samples: Sound, called: str, vad: bool) -> list[Sound]:
        """What is spoken, in pieces that fit the part's window: cut where the speaker pauses, if there is more than one of them."""
        most = int(self._model.feature_extractor.n_samples)
        level = samples * np.float32(0.5 / np.abs(samples).max())  # the speech detector is deaf to soft voices
        spoken = [level]
        if vad:
            spoken = _spoken(level, VadOptions())
            if not spoken:
                raise nothing_heard(called, f"{len(samples) / RATE:.1f} s in which nobody speaks")
            if sum(map(len, spoken)) > most:
                spoken = _spoken(level, VadOptions(max_speech_duration_s=most / RATE, min_silence_duration_ms=300, speech_pad_ms=200))
        windows: list[Sound] = []
        for piece in spoken:
            if windows and len(windows[-1]) + len(piece) <= most:
                windows[-1] = np.concatenate([windows[-1], piece])
            else:
                windows += [piece[start : start + most] for start in range(0, len(piece), most)]
        return windows

    def _language(self, window: Sound, language: str | None) -> tuple[str, float | None]:
        if language is not None or not self.multilingual:
            return language or "en", None
        if not self._tells_languages:
            what = "this speech part does not say which languages it knows, so that it cannot tell them apart"
            raise PartError(what, wanted="lang_ids in its config.json", do="Name the language, or use the Whisper it was converted from")
        features = self._model.feature_extractor(window)[..., :-1]  # as `transcribe` takes them, so that they are encoded once
        found, probability, _ = self._model.detect_language(features=features)
        return found, float(probability)

    def _hear(self, window: Sound, language: str, task: Task) -> str:
        segments, _ = self._model.transcribe(
            window,
            language=language,
            task=task,
            beam_size=self.beams,
            temperature=0.0,  # the default retries with random sampling
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


def _spoken(level: Sound, options: VadOptions) -> list[Sound]:
    return [level[part["start"] : part["end"]] for part in get_speech_timestamps(level, options)]


def _untaught(name: str, encoder: int, decoder: int) -> str | None:
    """Why a Whisper cannot translate, if it cannot: turbo and distilled ones kept few of their decoder's layers, and were then
    trained on transcripts alone. Every Whisper that was taught to translate has as many layers in its decoder as in its encoder.
    """
    if 2 * decoder <= encoder:
        return f"a turbo or distilled Whisper ({decoder} decoder layers to {encoder} in the encoder)"
    word = next((word for word in re.split(r"[^a-z]+", name.lower()) if word in ("turbo", "distil", "distilled")), None)
    return None if word is None else f"a Whisper called {name}"


class _Whisper(WhisperModel):
    """faster-whisper pads every window to 3,000 frames; here it is cut back to the length that the part's own front end names.

    What was encoded last is kept, for each thread, until it is to be forgotten: the language is asked of the same window that is
    then put into words.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last = threading.local()

    def encode(self, features: Any) -> Any:
        features = features[..., : self.feature_extractor.nb_max_frames]
        kept = getattr(self._last, "kept", None)
        if kept is None or kept[0].shape != features.shape or not np.array_equal(kept[0], features):
            kept = self._last.kept = (features.copy(), super().encode(features))
        return kept[1]

    def forget(self) -> None:
        self._last.kept = None
