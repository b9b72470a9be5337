"""The practice speech part before it is trained: tokenizer, feature extractor, configuration."""

from __future__ import annotations

import json
import random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ...speech.audio import SAMPLE_RATE
from ..dialogue import DESCRIBE_REQUESTS, SMALL_TALK, scene_questions
from ..world import sample_scene

WINDOW_SECONDS = 8  # seconds
HOP, FFT, MELS = 320, 400, 80  # samples, samples, bands
POSITIONS = WINDOW_SECONDS * SAMPLE_RATE // HOP // 2
WORDS = 1024  # maximum vocabulary rows below the special tokens
START = "<|startoftranscript|>"
END_OF_TEXT = "<|endoftext|>"
NO_SPEECH = "<|nocaptions|>"
NO_TIMES = "<|notimestamps|>"


def build_speech_tokenizer() -> WhisperTokenizer:
    """Byte-level BPE in which every word of the practice world is one token, followed by Whisper's
    special tokens in Whisper's order.
    """
    rng = random.Random(0)
    scenes = [
        *(sample_scene(rng, "train") for _ in range(2000)),
        *(sample_scene(rng, "combinations") for _ in range(2000)),
    ]
    texts = {question.text for scene in scenes for question in scene_questions(scene)}
    texts |= {*DESCRIBE_REQUESTS, *(text for text, _ in SMALL_TALK)}
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(sorted(texts), trainer)
    model = json.loads(inner.to_str())["model"]
    made = WhisperTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
    )
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:99]]
    special = [
        START,
        *languages,
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        NO_SPEECH,
        NO_TIMES,
    ]
    made.add_special_tokens({"extra_special_tokens": special})
    made.set_prefix_tokens()
    return made


def token_id(words: WhisperTokenizer, token: str) -> int:
    """Id of a token that the tokenizer has."""
    found = words.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def feature_extractor() -> WhisperFeatureExtractor:
    """Log-mel feature extractor of the practice speech model."""
    return WhisperFeatureExtractor(
        feature_size=MELS,
        sampling_rate=SAMPLE_RATE,
        hop_length=HOP,
        chunk_length=WINDOW_SECONDS,
        n_fft=FFT,
    )


def whisper_config(words: WhisperTokenizer) -> WhisperConfig:
    """Configuration of the practice speech model, with the special tokens of its tokenizer."""
    end = token_id(words, END_OF_TEXT)
    return WhisperConfig(
        vocab_size=len(words)
        + WINDOW_SECONDS * 50
        + 1,  # rows for timestamps of 20 ms follow, as in every Whisper
        num_mel_bins=MELS,
        d_model=128,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=320,
        max_source_positions=POSITIONS,
        max_target_positions=448,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=token_id(words, START),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
