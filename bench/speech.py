"""How fast a Whisper hears: phisense's `Transcriber` beside transformers' pipeline, with the same
weights.

    python bench/speech.py              # a random Whisper-base shape, five rounds; about three
    minutes on two CPU cores
    python bench/speech.py --tiny       # a random tiny shape, one round: does it run?
    python bench/speech.py --json       # ends with one line {"speech_gain": ...}

The figure is seconds of sound per second, over the practice recordings laid end to end (28 s of
speech, which fits one window). The sides take turns; medians and spreads are printed. Ours is
`Transcriber.transcribe` as every verb calls it: int8, the file decoded in its process, voices
detected. Theirs is `pipeline("automatic-speech-recognition")` on the decoded samples (reading the
file costs it nothing), in float32 or bfloat16, whichever a first trial finds faster on this
machine, with PyTorch's own attention and all cores.

Random weights say nothing, so how long they speak is built into them, alike for both sides: the
position embedding at one place makes the end token win there, and a bias makes it lose everywhere
else. Both sides search greedily, which is the default of both; with a beam of five they are timed
beside it. `speech_gain` is greedy to greedy. What random weights say is repetitive, so the test for
that, which would decode ours twice, is off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phisense  # noqa: F401, before torch: it decides how threads wait

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SECONDS, TOKENS = 28, 100  # of sound; said about it, which is what people say in that time
BASE = {"width": 512, "heads": 8, "wide": 2048, "encoder": 6, "decoder": 6}
TINY = {"width": 32, "heads": 2, "wide": 64, "encoder": 2, "decoder": 2}
TEXT_IDS, ROWS, END, START = 50_257, 51_865, 50_257, 50_258


def make_whisper(
    folder: Path,
    shape: dict[str, int],
    *,
    tokens: int = TOKENS,
    language: str = "en",
    seed: int = 0,
) -> Path:
    """A multilingual Whisper of `shape` with random weights that says `tokens` tokens about
    anything and takes it for `language`.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    special = _write_tokenizer(folder)
    torch.manual_seed(seed)
    ends = {
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "decoder_start_token_id": START,
    }
    config = WhisperConfig(
        vocab_size=ROWS,
        d_model=shape["width"],
        encoder_layers=shape["encoder"],
        decoder_layers=shape["decoder"],
        encoder_attention_heads=shape["heads"],
        decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=shape["wide"],
        decoder_ffn_dim=shape["wide"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **ends,
    )
    model = WhisperForConditionalGeneration(config).eval()
    decoder = model.model.decoder
    # Two directions, orthogonal to each other and to the ones that layer norm takes out.
    first, last = torch.linalg.qr(
        torch.cat([torch.ones(shape["width"], 1), torch.randn(shape["width"], 2)], 1)
    )[0].T[1:]
    with torch.no_grad():
        # at the start token only the language is asked for
        decoder.embed_positions.weight[0] += 50 * first
        # after the four tokens of the prompt
        decoder.embed_positions.weight[tokens + 3] += 50 * last
        decoder.embed_tokens.weight[special[f"<|{language}|>"]] += first
        decoder.embed_tokens.weight[END] = 2 * last
        decoder.layer_norm.bias -= 2 * (first + last)
    languages = {
        token: number
        for token, number in special.items()
        if number in range(START + 1, special["<|translate|>"])
    }
    model.generation_config = GenerationConfig(
        max_length=448,
        is_multilingual=True,
        lang_to_id=languages,
        no_timestamps_token_id=special["<|notimestamps|>"],
        task_to_id={"transcribe": special["<|transcribe|>"], "translate": special["<|translate|>"]},
        **ends,
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    front_end = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**front_end, "n_samples": 480_000, "nb_max_frames": 3000})
    )
    return folder


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """One with Whisper's own ids: 50,257 pieces of text, here bytes and numbered words, then its
    special tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from phisense.speech.languages import LANGUAGES

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The last is empty, as in the real one: by it CTranslate2 knows a multilingual Whisper.
    pieces = [*letters, *(f"Ġ{number}" for number in range(TEXT_IDS - len(letters) - 1)), ""]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *[code for code in LANGUAGES if code != "yue"]]
    names += ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens(
        [AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "WhisperTokenizer", "model_max_length": 448, **ends})
    )
    return {f"<|{name}|>": tokenizer.token_to_id(f"<|{name}|>") for name in names}


def make_sound(path: Path, seconds: float) -> Path:
    """The practice recordings end to end, as a WAV of at most `seconds`."""
    import wave

    import numpy as np

    from phisense.practice.spoken import spoken_questions
    from phisense.speech.audio import SAMPLE_RATE, read_audio

    pieces: list[Any] = []
    for recording in spoken_questions():
        pieces.append(read_audio(recording.path))
        if sum(map(len, pieces)) >= seconds * SAMPLE_RATE:
            break
    samples = np.concatenate(pieces)[: int(seconds * SAMPLE_RATE)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def speech_gain(
    rounds: int = 5, *, tiny: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """`speech_gain` (medians, greedy to greedy), and under `speeds` each side's seconds of sound
    per second, all rounds.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_whisper(Path(scratch) / "whisper", TINY if tiny else BASE)
        sound = make_sound(Path(scratch) / "sound.wav", SECONDS)
        sides = {**_ours(folder, sound, Path(scratch) / "cache"), **_theirs(folder, sound, say)}
        # once for warmth, and to see that all do the same work
        said = {name: hear() for name, hear in sides.items()}
        counts = {name: len(text.split()) for name, text in said.items()}
        assert max(counts.values()) - min(counts.values()) <= 2, counts
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            for name, hear in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
                begun = time.perf_counter()
                hear()
                speeds[name].append(SECONDS / (time.perf_counter() - begun))
    median = {name: statistics.median(found) for name, found in speeds.items()}
    for name, found in speeds.items():
        say(
            f"{name:28} {median[name]:7.1f} s of sound per second ({min(found):.1f} to"
            f" {max(found):.1f}), {counts[name]} words"
        )
    gains = {
        name: median[f"ours, {name}"] / median[f"pipeline, {name}"]
        for name in ("greedy", "beam of five")
    }
    say(
        f"greedy, the default of both, {gains['greedy']:.2f}; beam of five"
        f" {gains['beam of five']:.2f}"
    )
    return {
        "speech_gain": gains["greedy"],
        "beam": gains["beam of five"],
        "speeds": speeds,
    }


def _ours(folder: Path, sound: Path, cache: Path) -> dict[str, Callable[[], str]]:
    from phisense.speech import Transcriber, transcriber

    ears = {
        "greedy": Transcriber(folder, cache=cache, device="cpu"),
        "beam of five": Transcriber(folder, cache=cache, device="cpu", beam_size=5),
    }
    transcriber.is_repetitive = lambda text: False
    return {
        f"ours, {name}": lambda one=one: one.transcribe(sound, language="en").text
        for name, one in ears.items()
    }


def _theirs(folder: Path, sound: Path, say: Callable[[str], None]) -> dict[str, Callable[[], str]]:
    import torch
    from transformers import pipeline

    from phisense.speech import read_audio
    from phisense.speech.audio import SAMPLE_RATE

    samples = read_audio(sound)
    torch.set_num_threads(os.cpu_count() or 1)

    def hear(pipe: Any, beams: int) -> str:
        options = {"language": "en", "task": "transcribe", "num_beams": beams}
        text: str = pipe(
            {"raw": samples.copy(), "sampling_rate": SAMPLE_RATE}, generate_kwargs=options
        )["text"]
        return text

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe = pipeline(
            "automatic-speech-recognition", model=str(folder), dtype=dtype, device="cpu"
        )
        hear(pipe, 1)
        begun = time.perf_counter()
        hear(pipe, 1)
        found[dtype] = (time.perf_counter() - begun, pipe)
        say(f"pipeline, tried in {dtype}: {found[dtype][0]:.2f} s")
    best = min(found.values(), key=lambda pair: pair[0])[1]
    return {
        "pipeline, greedy": lambda: hear(best, 1),
        "pipeline, beam of five": lambda: hear(best, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and one round")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    found = speech_gain(1 if asked.tiny else asked.rounds, tiny=asked.tiny)
    if asked.json:
        print(json.dumps({"speech_gain": round(found["speech_gain"], 2)}))


if __name__ == "__main__":
    main()
