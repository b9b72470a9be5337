"""Transcribes an audio file with Whisper; other languages than English are translated into English
by default.
"""

from __future__ import annotations

import re
import threading
import zlib
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps

from ..artifacts import read_json
from ..errors import PartError, SoundError, UsageError
from ..safe_parsing import quote
from .audio import MAX_SECONDS, SAMPLE_RATE, AudioSamples, no_speech_error, read_recording
from .ctranslate2_model import ctranslate2_folder, layer_counts
from .languages import LANGUAGES
from .transcript import Transcript

TranscriptionTask = Literal["transcribe", "translate"]

#: Text with a higher compression ratio is repetitive: the threshold of Whisper's own decoding
#: (Radford et al. 2022, section 4.5).
COMPRESSION_RATIO_THRESHOLD = 2.4
#: Beam search ends when `beam_size` times this many hypotheses have ended (Kasai et al. 2022). With
#: 1, a few poor hypotheses that end early stop it while a far more probable one goes on, and a
#: confident model returns one of the poor ones.
BEAM_SEARCH_PATIENCE = 2.0
#: A phrase of at least so many words, said so often in a row, is a loop, too: a short text does not
#: compress. People do say a word or two several times ("no, no, no", "very good, very good").
MIN_LOOP_WORDS, MIN_LOOP_TIMES = 3, 3
#: The voice detector's probability above which somebody speaks in a recording at all; noise stays
#: below it.
SPEECH_THRESHOLD = 0.5
#: Its probability above which sound is kept once somebody speaks. What is cut away cannot be
#: transcribed, and the detector is unsure of hoarse voices: at 0.5 it cut 9 s of speech out of 24.
KEEP_THRESHOLD = 0.3


class Transcriber:
    """A Whisper model, loaded once; `transcribe` is thread-safe.

    `folder` is a Whisper in transformers' layout (converted once into `cache`), a CTranslate2
    folder, or a Hub id. `compute_type` defaults to float16 on a GPU and int8 on a CPU.
    `max_seconds` limits the duration of a recording; `threads` 0 is CTranslate2's default.
    `beam_size` is the beam width; 1 is greedy decoding, which is 2.5 times as fast as OpenAI's
    default of 5 and hears real voices no worse (`docs/voice.md`).
    Raises PartError if the model does not exist or is not a Whisper.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        cache: Path | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        compute_type: str | None = None,
        max_seconds: float = MAX_SECONDS,
        threads: int = 0,
        beam_size: int = 1,
    ) -> None:
        self.folder = ctranslate2_folder(folder, cache)
        self.max_seconds = max_seconds
        self.device = (
            ("cuda" if ctranslate2.get_cuda_device_count() else "cpu")
            if device == "auto"
            else device
        )
        self.compute_type = compute_type or ("float16" if self.device == "cuda" else "int8")
        try:
            self._model = _Whisper(
                str(self.folder),
                device=self.device,
                compute_type=self.compute_type,
                cpu_threads=threads,
            )
        # CTranslate2's errors, and plain Exceptions of the tokenizers library
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PartError(
                f"the speech part {folder} cannot be loaded on {self.device}", got=reason
            ) from error
        self._can_detect_language = bool(read_json(self.folder / "config.json").get("lang_ids"))
        self.beam_size = beam_size
        self._no_translation_reason = _why_no_translation(
            Path(folder).name, *layer_counts(self.folder)
        )

    @property
    def multilingual(self) -> bool:
        """Whether the model supports languages other than English."""
        return bool(self._model.model.is_multilingual)

    @property
    def can_translate(self) -> bool:
        """Whether the model can translate other languages into English."""
        return self.multilingual and self._no_translation_reason is None

    def transcribe(
        self,
        sound: Path,
        *,
        name: str | None = None,
        language: str | None = None,
        task: TranscriptionTask | None = None,
        vad: bool = True,
    ) -> Transcript:
        """Transcribe the file `sound`, which errors call `name` if given.

        `language` is Whisper's code of the spoken language; None lets a multilingual model detect
        it. `task` "transcribe" keeps that language, "translate" returns English, and None
        translates everything that is not English. `vad` removes non-speech (Silero VAD, shipped
        with faster-whisper): on silence Whisper hallucinates.

        Raises SoundError if the audio cannot be read, contains no speech, or yields only repetitive
        text; UsageError for an unknown language code; PartError if the model does not support the
        language, or cannot translate.
        """
        self._check_can(language, task)
        called = name or sound.name
        recording = read_recording(sound, name=called, max_seconds=self.max_seconds)
        windows = self._windows(recording.samples, called, vad)
        language, probability = self._language(windows[0], language)
        if task is None:
            task = "transcribe" if language == "en" else "translate"
        if task == "translate":
            self._check_translates(language)
        heard = [
            text
            for text in (self._transcribe_window(window, language, task) for window in windows)
            if text
        ]
        self._model.clear_cache()
        loops = _count_loops(heard, called)
        return Transcript(
            " ".join(heard),
            recording.seconds,
            language,
            probability,
            translated=task == "translate",
            truncated=recording.truncated,
            repetitive=loops > 0,
            channel_count=recording.channel_count,
        )

    def _check_can(self, language: str | None, task: TranscriptionTask | None) -> None:
        """Raise UsageError for an unknown language, PartError for what the model was not taught."""
        if language is not None and language not in LANGUAGES:
            raise UsageError(
                "no such language",
                got=language,
                wanted=f"a code such as {', '.join(list(LANGUAGES)[:6])}",
            )
        if not self.multilingual and (language or "en", task or "transcribe") != (
            "en",
            "transcribe",
        ):
            asked = f"{task or 'translate'} from {LANGUAGES[language or 'en']}"
            raise PartError(
                "this speech part hears English only",
                got=asked,
                do="Use a multilingual Whisper such as openai/whisper-small",
            )
        if task == "translate":
            self._check_translates(language)

    def _check_translates(self, language: str | None) -> None:
        if not self.can_translate:
            what = "this speech part was never taught to translate into English"
            got = (
                f"{LANGUAGES[language] if language else 'another language'} for"
                f" {self._no_translation_reason}"
            )
            raise PartError(
                what, got=got, do="Use openai/whisper-small, -medium or -large-v3, which were"
            )

    def _windows(self, samples: AudioSamples, name: str, vad: bool) -> list[AudioSamples]:
        """Split the speech into pieces that fit the model's window; if it needs more than one,
        split at pauses.
        """
        most = int(self._model.feature_extractor.n_samples)
        # normalize the level: the VAD misses quiet voices
        level = samples * np.float32(0.5 / np.abs(samples).max())
        spoken = [level]
        if vad:
            if not _speech_segments(level, VadOptions(threshold=SPEECH_THRESHOLD)):
                raise no_speech_error(
                    name, f"{len(samples) / SAMPLE_RATE:.1f} s in which nobody speaks"
                )
            spoken = _speech_segments(level, VadOptions(threshold=KEEP_THRESHOLD))
            if sum(map(len, spoken)) > most:
                spoken = _speech_segments(
                    level,
                    VadOptions(
                        threshold=KEEP_THRESHOLD,
                        max_speech_duration_s=most / SAMPLE_RATE,
                        min_silence_duration_ms=300,
                        speech_pad_ms=200,
                    ),
                )
        windows: list[AudioSamples] = []
        for piece in spoken:
            if windows and len(windows[-1]) + len(piece) <= most:
                windows[-1] = np.concatenate([windows[-1], piece])
            else:
                windows += [piece[start : start + most] for start in range(0, len(piece), most)]
        return windows

    def _language(self, window: AudioSamples, language: str | None) -> tuple[str, float | None]:
        if language is not None or not self.multilingual:
            return language or "en", None
        if not self._can_detect_language:
            what = (
                "this speech part does not say which languages it knows, so that it cannot tell"
                " them apart"
            )
            raise PartError(
                what,
                wanted="lang_ids in its config.json",
                do="Name the language, or use the Whisper it was converted from",
            )
        # the same features as in `transcribe`, so that `encode` finds them in its cache
        features = self._model.feature_extractor(window)[..., :-1]
        found, probability, _ = self._model.detect_language(features=features)
        return found, float(probability)

    def _transcribe_window(
        self, window: AudioSamples, language: str, task: TranscriptionTask
    ) -> str:
        """Return the text of a window; repetitive text is decoded again without repeated
        trigrams.
        """
        text = self._decode(window, language, task, no_repeat=0)
        return self._decode(window, language, task, no_repeat=3) if is_repetitive(text) else text

    def _decode(
        self, window: AudioSamples, language: str, task: TranscriptionTask, no_repeat: int
    ) -> str:
        segments, _ = self._model.transcribe(
            window,
            language=language,
            task=task,
            beam_size=self.beam_size,
            patience=BEAM_SEARCH_PATIENCE,
            temperature=0.0,  # the default falls back to random sampling
            condition_on_previous_text=False,
            without_timestamps=True,
            no_repeat_ngram_size=no_repeat,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


def is_repetitive(text: str) -> bool:
    """Whether a text is a loop: by its compression ratio, or, since short texts do not compress, by
    a phrase that follows itself ("the name of the name of the name of").
    """
    data = text.encode()
    if data and len(data) / len(zlib.compress(data)) > COMPRESSION_RATIO_THRESHOLD:
        return True
    words = re.findall(r"\w+", text.lower())
    return any(
        words[start : start + size] * MIN_LOOP_TIMES == words[start : start + size * MIN_LOOP_TIMES]
        for size in range(MIN_LOOP_WORDS, len(words) // MIN_LOOP_TIMES + 1)
        for start in range(len(words) - size * MIN_LOOP_TIMES + 1)
    )


def _count_loops(heard: list[str], name: str) -> int:
    """The number of repetitive texts. Raises SoundError if there is no text, or no other."""
    if not heard:
        raise no_speech_error(name, "speech without words")
    loops = sum(map(is_repetitive, heard))
    if loops == len(heard):
        raise SoundError(
            f"{name} was not understood",
            got=f"a loop: {quote(heard[0])}",
            do="Speak again, in short sentences, or name the language that is spoken",
        )
    return loops


def _speech_segments(level: AudioSamples, options: VadOptions) -> list[AudioSamples]:
    return [level[part["start"] : part["end"]] for part in get_speech_timestamps(level, options)]


def _why_no_translation(name: str, encoder: int, decoder: int) -> str | None:
    """Return why a Whisper cannot translate, or None if it can.

    Turbo and distilled models keep few decoder layers and were then trained on transcription only.
    Every Whisper trained to translate has as many decoder layers as encoder layers.
    """
    if 2 * decoder <= encoder:
        return (
            f"a turbo or distilled Whisper ({decoder} decoder layers to {encoder} in the encoder)"
        )
    word = next(
        (
            word
            for word in re.split(r"[^a-z]+", name.lower())
            if word in ("turbo", "distil", "distilled")
        ),
        None,
    )
    return None if word is None else f"a Whisper called {name}"


class _Whisper(WhisperModel):
    """faster-whisper pads every window to 3,000 frames; this cuts it to the length that the model's
    feature extractor specifies.

    The last encoder output is cached per thread until `clear_cache`: language detection and
    decoding encode the same window.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cache = threading.local()

    def encode(self, features: Any) -> Any:
        features = features[..., : self.feature_extractor.nb_max_frames]
        kept = getattr(self._cache, "kept", None)
        if kept is None or kept[0].shape != features.shape or not np.array_equal(kept[0], features):
            kept = self._cache.kept = (features.copy(), super().encode(features))
        return kept[1]

    def clear_cache(self) -> None:
        self._cache.kept = None
