"""Trains the practice speech part: a small English Whisper, from scratch, on synthetic voices
(`voices`).

The feature extractor is Whisper's with a shorter window (8 s) and half the frame rate (a frame
every 20 ms, after the second convolution 40 ms); both are in its `preprocessor_config.json`, which
transformers and faster-whisper honor. Besides the decoder's cross entropy, a connectionist temporal
classification loss (Graves et al., 2006) is applied to the encoder: it knows that words come in the
order of the sound, so the encoder learns within minutes what attention alone finds in hours. Its
head is discarded. Noise without words is labeled as OpenAI did: `<|nocaptions|>` in place of
`<|notimestamps|>`, no text.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import (
    GenerationConfig,
    WhisperForConditionalGeneration,
)

from ...prompt import IGNORE_INDEX
from ...speech.audio import SAMPLE_RATE
from ..spoken import word_error_rate
from .speech_model import (
    END_OF_TEXT,
    FFT,
    HOP,
    MELS,
    NO_SPEECH,
    NO_TIMES,
    START,
    WINDOW_SECONDS,
    build_speech_tokenizer,
    feature_extractor,
    token_id,
    whisper_config,
)
from .voices import HELD_OUT_VOICES, Clip, RoomAcoustics, Waveform, clips


@dataclass(frozen=True)
class SpeechPlan:
    """Training settings.

    `chunks` of clips are synthesized during training, one every `steps // chunks` steps; the newest
    `kept_chunks` are used.
    """

    steps: int = 6_000
    batch: int = 32
    chunks: int = 40
    chunk: int = 1_000
    kept_chunks: int = 20
    learning_rate: float = 2e-3
    noise_share: float = 0.04
    seed: int = 13


class SpeechTrainer:
    """One training run; `step` takes one optimizer step and returns both losses."""

    def __init__(self, plan: SpeechPlan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.room = RoomAcoustics(plan.seed)
        self.words = build_speech_tokenizer()
        # Eager attention: on CPUs the fused kernel's backward pass takes several times as long at
        # this length.
        self.model = WhisperForConditionalGeneration._from_config(
            whisper_config(self.words), attn_implementation="eager"
        )
        self.end = token_id(self.words, END_OF_TEXT)
        self.prompt = [token_id(self.words, START), token_id(self.words, NO_TIMES)]
        self.no_speech = token_id(self.words, NO_SPEECH)
        # The end token is the blank.
        self.head = torch.nn.Linear(self.model.config.d_model, self.end + 1)
        self.bands = torch.from_numpy(
            np.asarray(feature_extractor().mel_filters, np.float32).T.copy()
        )
        self.learnt = [
            p for p in (*self.model.parameters(), *self.head.parameters()) if p.requires_grad
        ]
        decayed = [p for p in self.learnt if p.ndim > 1]
        plain = [p for p in self.learnt if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 300)
        return warm * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.plan.steps)))
        )

    def step(self, batch: Sequence[Clip]) -> tuple[float, float]:
        """Take one optimizer step on a batch; returns the losses of decoder and encoder."""
        sounds, texts = self.record(batch)
        # Mostly trimmed to the longest sound, which is several times as fast; sometimes the whole
        # window, as in inference.
        whole = self.rng.random() < 0.25
        features, lengths = self.features(
            sounds, pad_sound=whole and self.rng.random() < 0.5, whole=whole
        )
        self._mask(features)
        inputs, labels, targets = self._tokens(texts)
        with torch.autocast("cpu", torch.bfloat16):
            heard = self.encode(features)
            logits = self.decode(inputs, heard)
            spelled = self.head(heard)
        said = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
        )
        steps = torch.log_softmax(spelled.float(), -1).transpose(0, 1)  # (T, B, words + 1)
        counts = torch.tensor([len(target) for target in targets])
        flat = torch.tensor([token for target in targets for token in target])
        order = F.ctc_loss(
            steps, flat, lengths.clamp(min=2) // 2, counts, blank=self.end, zero_infinity=True
        )
        self.optimizer.zero_grad(set_to_none=True)
        (said + 0.5 * order).backward()
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return said.item(), order.item()

    def record(self, batch: Sequence[Clip]) -> tuple[list[Waveform], list[str]]:
        """Apply room acoustics to the clips; a share is replaced by noise with empty text."""
        sounds, texts = [], []
        for clip in batch:
            if self.rng.random() < self.plan.noise_share:
                volume = 10 ** self.rng.uniform(-4, -0.7)
                sounds.append(
                    self.room.noise(int(self.rng.uniform(0.4, 3) * SAMPLE_RATE))
                    * np.float32(volume)
                )
                texts.append("")
            else:
                sounds.append(self.room.record(clip.sound, WINDOW_SECONDS * SAMPLE_RATE))
                texts.append(clip.text)
        return sounds, texts

    def features(
        self, sounds: Sequence[Waveform], *, pad_sound: bool = False, whole: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features `(B, MELS, frames)` and the number of frames of each sound.

        faster-whisper pads the features with zeros to the window; transformers pads the sound
        (`pad_sound`). Both are trained.
        """
        lengths = torch.tensor(
            [min(WINDOW_SECONDS * SAMPLE_RATE, len(sound)) // HOP for sound in sounds]
        )
        samples = (
            WINDOW_SECONDS * SAMPLE_RATE
            if whole
            else int(lengths.max()) * HOP + HOP * (int(lengths.max()) % 2)
        )
        waves = torch.zeros(len(sounds), samples)
        for row, sound in zip(waves, sounds, strict=True):
            row[: min(samples, len(sound))] = torch.from_numpy(
                np.ascontiguousarray(sound[:samples])
            )
        spectrum = (
            torch.stft(waves, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)[
                ..., :-1
            ].abs()
            ** 2
        )
        log = (self.bands @ spectrum).clamp(min=1e-10).log10()
        log = (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4
        if not pad_sound:
            log = log * (torch.arange(log.shape[-1])[None] < lengths[:, None])[:, None]
        return log, lengths

    def _mask(self, features: torch.Tensor) -> None:
        """SpecAugment (Park et al., 2019), mild: masks some bands and one time span."""
        for row in features:
            if self.rng.random() < 0.4:
                band = self.rng.randrange(MELS - 10)
                moment = self.rng.randrange(features.shape[-1] - 6)
                row[band : band + self.rng.randint(2, 10)] = 0
                row[:, moment : moment + self.rng.randint(1, 6)] = 0

    def _tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        """Decoder inputs and labels `(B, T)`, and the word ids alone for the encoder's loss."""
        rows, targets = [], []
        for text in texts:
            rows.append([*self.prompt, *self._ids(text), self.end])
            targets.append(self._ids("".join(c for c in text if c.isalnum() or c == " ")))
        longest = max(map(len, rows))
        inputs = torch.tensor([row[:-1] + [self.end] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row[1:] + [IGNORE_INDEX] * (longest - len(row)) for row in rows])
        for i, text in enumerate(texts):
            if not text:
                labels[i, 0] = self.no_speech
        return inputs, labels, targets

    def _ids(self, text: str) -> list[int]:
        """Token ids with a leading space, so that a word is the same token in any position."""
        return list(self.words(f" {text}", add_special_tokens=False)["input_ids"]) if text else []

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Run the encoder on `(B, MELS, frames)` of any even length up to the window.

        The model's own `forward` accepts only whole windows.
        """
        encoder = self.model.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        normed: torch.Tensor = encoder.layer_norm(hidden)
        return normed

    def decode(self, ids: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        """Token ids `(B, T)`, encoder output `(B, frames, D)` -> logits `(B, T, V)`."""
        hidden = self.model.model.decoder(
            input_ids=ids, encoder_hidden_states=encoded, use_cache=False
        ).last_hidden_state
        logits: torch.Tensor = self.model.proj_out(hidden)
        return logits

    @torch.no_grad()
    def transcribe(self, sounds: Sequence[Waveform], longest: int = 24) -> list[str]:
        """Greedy decoding for progress reports; users run faster-whisper."""
        self.model.eval()
        heard = self.encode(self.features(sounds)[0])
        ids = torch.tensor([self.prompt] * len(sounds))
        for _ in range(longest):
            ids = torch.cat([ids, self.decode(ids, heard)[:, -1:].argmax(-1)], 1)
            if (ids[:, 2:] == self.end).any(1).all():
                break
        self.model.train()
        return [
            self.words.decode(row[: row.index(self.end)] if self.end in row else row).strip()
            for row in ids[:, 2:].tolist()
        ]


class ClipPool:
    """The training clips; the next chunk is synthesized while this one is used."""

    def __init__(self, plan: SpeechPlan) -> None:
        self.plan = plan
        self.pool = ThreadPoolExecutor(1)
        self.chunks: list[list[Clip]] = []
        self.spoken = 0
        self.coming = self._speak()

    def _speak(self) -> Future[list[Clip]]:
        return self.pool.submit(clips, self.plan.seed * 1_000_003 + self.spoken, self.plan.chunk)

    def add(self) -> None:
        """Replace the oldest chunk with the one synthesized meanwhile, and start the next."""
        self.chunks = [*self.chunks[-(self.plan.kept_chunks - 1) :], self.coming.result()]
        self.spoken += 1
        if self.spoken < self.plan.chunks:
            self.coming = self._speak()

    def batches(self, rng: random.Random) -> list[list[Clip]]:
        """Eight batches of clips of similar length, in random order."""
        drawn = [rng.choice(rng.choice(self.chunks)) for _ in range(8 * self.plan.batch)]
        drawn.sort(key=lambda clip: len(clip.sound))
        made = [drawn[i : i + self.plan.batch] for i in range(0, len(drawn), self.plan.batch)]
        rng.shuffle(made)
        return made


def main(out: Path, plan: SpeechPlan | None = None, log_every: int = 50) -> None:
    """Synthesize, train, report the word error rate on held-out voices, save in hub layout."""
    plan = plan or SpeechPlan()
    run, bank = SpeechTrainer(plan), ClipPool(plan)
    unheard = clips(977, 96, HELD_OUT_VOICES)
    started = time.monotonic()
    waiting: list[list[Clip]] = []
    for step in range(plan.steps):
        if step % (plan.steps // plan.chunks) == 0 and bank.spoken < plan.chunks:
            bank.add()
        waiting = waiting or bank.batches(run.rng)
        losses = run.step(waiting.pop())
        if (step + 1) % log_every == 0 or step == 0:
            left = (time.monotonic() - started) / (step + 1) * (plan.steps - step - 1)
            told = f"decoder {losses[0]:.3f} encoder {losses[1]:.3f}"
            print(f"step {step + 1}/{plan.steps} {told} {left / 60:.0f} min left", flush=True)
        if (step + 1) % (log_every * 8) == 0 or step + 1 == plan.steps:
            save_speech_part(run, out)
            report_word_errors(run, unheard)


def report_word_errors(run: SpeechTrainer, unheard: Sequence[Clip]) -> None:
    """Print the word error rate on held-out voices, and how often noise is transcribed."""
    room = RoomAcoustics(977)
    heard = run.transcribe(
        [room.record(clip.sound, WINDOW_SECONDS * SAMPLE_RATE) for clip in unheard]
    )
    pairs = [(clip.text, text) for clip, text in zip(unheard, heard, strict=True)]
    noises = run.transcribe([room.noise(2 * SAMPLE_RATE) * np.float32(0.1) for _ in range(16)])
    figures = (
        f"word error rate {word_error_rate(pairs):.3f}; text for noise {sum(map(bool, noises))}/16"
    )
    print(f"held-out voices: {figures}; {pairs[0]}", flush=True)


def save_speech_part(run: SpeechTrainer, out: Path) -> None:
    """Save in half precision, since the parts are shipped with the package."""
    copy = WhisperForConditionalGeneration(run.model.config)
    copy.load_state_dict(run.model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=run.end,
        eos_token_id=run.end,
        pad_token_id=run.end,
        decoder_start_token_id=run.prompt[0],
        is_multilingual=False,
        no_timestamps_token_id=run.prompt[1],
        max_length=448,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        return_timestamps=False,
    )
    copy.half().save_pretrained(out, max_shard_size="3MB")
    run.words.save_pretrained(out)
    feature_extractor().save_pretrained(out)
