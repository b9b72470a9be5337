"""Inference engine for machines without a GPU: llama.cpp runs the language model, torch the vision
tower.

What a sequence's KV cache holds is tracked by one key per position: a token id, or for image
positions a negative number unique to the image. A turn computes only what follows the longest
common prefix of its prompt's keys and the cached ones.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from .. import artifacts
from ..conversations import Message
from ..cpu_limits import available_memory, physical_cores
from ..errors import ArtifactError, PartError
from ..families import context_window
from ..opening import validate_folder
from ..prompt import Prompt
from .detokenize import StreamingDetokenizer
from .engine import Sampling
from .fair_lock import FairLock
from .kv_cache import SessionCache, common_prefix_length
from .llama_context import Embeddings, GenerationStopped, LlamaContext, Logits
from .llama_probe import require_llama_cpp
from .open_engine import GGUF_KIND

EXPORT_KIND = GGUF_KIND
MAX_CACHED_SESSIONS = 16  # sessions with a cached sequence, memory permitting
VISION_FOLDER = "vision"  # subfolder: a model folder whose language model has no layers


@dataclass(eq=False, slots=True)
class ImageEmbeddings:
    """Projected image embeddings `(P', H)`, the language model's input. `key` identifies the image
    in the KV cache.
    """

    embeddings: Embeddings
    key: int

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(eq=False)
class _SequenceState:
    """A session's llama.cpp sequence, and the key of each cached position."""

    sequence: int = -1
    keys: list[int] = field(default_factory=list)
    release: Callable[[], object] = lambda: None  # returns the sequence to the free list, once


class LlamaEngine:
    """Generates for one session at a time, in FIFO order. A session keeps its sequence until more
    recent sessions need it.
    """

    kind = "llama"
    where = "llama.cpp on the CPU"
    endpoint = None
    attention_map = None

    def __init__(
        self,
        folder: Path,
        *,
        picture_tokens: int | None = None,
        threads: int | None = None,
        max_sessions: int | None = None,
    ) -> None:
        """Raises ArtifactError for a folder that `phisense export` did not write or finish,
        PartError if llama.cpp is missing or a file fails validation.
        """
        about, file = _read_export(folder)
        require_llama_cpp()
        import torch
        from transformers import AutoTokenizer

        from ..model.folder import check_tokenizer, open_model_config
        from ..model.projectors.image_tokens import count_image_tokens, nested_pool
        from ..parts import load_auto
        from .sampling import TokenSampler

        self.name = f"{about['name']} {about['quant']}"
        self._vision_folder = folder / VISION_FOLDER
        config, tokenizer = (
            open_model_config(self._vision_folder),
            load_auto(AutoTokenizer, self._vision_folder),
        )
        check_tokenizer(self._vision_folder, tokenizer, config)
        self._requested_image_tokens = picture_tokens
        self.picture_tokens = count_image_tokens(config, nested_pool(config, picture_tokens))
        self.window = context_window(config)
        self.prompt = Prompt(tokenizer)
        max_sessions = max_sessions or _affordable_sequences(
            file, about["bytes_per_position"] * self.window
        )
        self.context = LlamaContext(
            file, window=self.window, sequences=max_sessions, threads=threads or physical_cores()
        )
        self._check_fits(folder, config)
        self._cache: SessionCache[_SequenceState] = SessionCache(max_sessions)
        self._free_sequences = deque(range(max_sessions))
        self._lock = FairLock()
        self._image_keys = itertools.count(1)
        self._vision_model: Any = None
        generator = torch.Generator()
        generator.seed()  # otherwise every process draws the same
        self._sampler = TokenSampler("Run phisense export again", generator)

    @classmethod
    def open(
        cls, folder: Path, picture_tokens: int | None = None, threads: int | None = None
    ) -> LlamaEngine:
        """Open a folder that `phisense export` wrote.

        Raises as `__init__` does.
        """
        return cls(folder, picture_tokens=picture_tokens, threads=threads)

    def _check_fits(self, folder: Path, config: Any) -> None:
        """Raises PartError if the language model and the vision part belong to different models."""
        most = max(self.prompt.tokenizer.get_vocab().values())
        if (
            self.context.hidden_size != config.text_config.hidden_size
            or most >= self.context.vocab_size
        ):
            self.context.close()
            raise PartError(
                f"the files of {folder} are of different models",
                got=f"width {self.context.hidden_size} and {self.context.vocab_size} rows",
                wanted=f"width {config.text_config.hidden_size} and more than {most} rows",
                do="Run phisense export again",
            )

    def encode_image(self, picture: Image) -> ImageEmbeddings:
        """Encode and project an image. The vision tower is loaded for the first image."""
        import torch

        with self._lock.acquire():
            if self._vision_model is None:
                from ..model import load_model

                self._vision_model = load_model(
                    self._vision_folder, "cpu", image_tokens=self._requested_image_tokens
                )
            with torch.inference_mode():
                vectors = self._vision_model.project([picture])[0].float().numpy()
        return ImageEmbeddings(vectors, -next(self._image_keys))

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[ImageEmbeddings]) -> int:
        """Number of prompt tokens, image tokens included."""
        return len(self.prompt.render_for_completion(messages, [len(one) for one in seen]))

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens in a user's text, so that they are tokenized as plain text."""
        return self.prompt.escape_special_tokens(text)

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[ImageEmbeddings],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer in chunks of text.

        Sessions wait for each other; setting `stop` ends generation.
        """
        ids = self.prompt.render_for_completion(messages, [len(one) for one in seen])
        with self._lock.acquire(stop) as mine:
            if not mine:
                return
            state = self._assign_sequence(owner)
            try:
                logits = self._prefill(state, ids, seen, stop)
                yield from self._generate(state, logits, sampling, stop)
            except GenerationStopped:
                return
            except GeneratorExit:
                raise
            except BaseException:  # the content of the KV cache is no longer known
                state.keys.clear()
                raise
            finally:
                self._cache.put(owner, state)

    def _generate(
        self, state: _SequenceState, logits: Logits, sampling: Sampling, stop: threading.Event
    ) -> Iterator[str]:
        ends = set(self.prompt.stop_ids)
        words = StreamingDetokenizer(self.prompt.tokenizer)
        for number in range(sampling.max_new_tokens):
            token = self._sampler.sample(logits, sampling)
            if token in ends or stop.is_set():
                break
            piece = words.push(token)
            if piece:
                yield piece
            if number + 1 == sampling.max_new_tokens or stop.is_set():
                break
            logits = self.context.decode(state.sequence, len(state.keys), [token])
            state.keys.append(token)
        rest = words.flush()
        if rest:
            yield rest

    def _prefill(
        self,
        state: _SequenceState,
        ids: Sequence[int],
        seen: Sequence[ImageEmbeddings],
        stop: threading.Event,
    ) -> Logits:
        """Compute the part of the prompt that is not in the KV cache; return the logits `(V,)` of
        its last position.
        """
        keys, vectors = self._position_keys(ids, seen)
        # the last position is recomputed, for its logits
        held = min(common_prefix_length(state.keys, keys), len(keys) - 1)
        self.context.truncate_to(state.sequence, held)
        del state.keys[held:]
        logits: Logits | None = None
        for begin, end in _segments(keys, held):
            new = (
                vectors[keys[begin]][begin - keys.index(keys[begin]) :][: end - begin]
                if keys[begin] < 0
                else ids[begin:end]
            )
            logits = self.context.decode(state.sequence, begin, new, stop=stop)
            state.keys += keys[begin:end]
        assert logits is not None
        return logits

    def _position_keys(
        self, ids: Sequence[int], seen: Sequence[ImageEmbeddings]
    ) -> tuple[list[int], dict[int, Embeddings]]:
        """Return `ids` with each image token replaced by its image's key, and the embeddings by
        key.
        """
        keys = list(ids)
        places = iter([i for i, token in enumerate(ids) if token == self.prompt.image_id])
        for one in seen:
            for place in itertools.islice(places, len(one)):
                keys[place] = one.key
        return keys, {one.key: one.embeddings for one in seen}

    def _assign_sequence(self, owner: object) -> _SequenceState:
        """Return the owner's state, or a new one: in a free sequence, or in that of the least
        recently used session.
        """
        state = self._cache.pop(owner)
        if state is None:
            for gone in self._cache.put(owner, _SequenceState()):  # evicted for the new state
                gone.release()
            state = self._cache.pop(owner)
            assert state is not None
            state.sequence = self._free_sequences.popleft()
            # Whether evicted or collected with its owner, its sequence is free again.
            state.release = weakref.finalize(state, self._free_sequences.append, state.sequence)
            state.release.atexit = False
            self.context.truncate_to(state.sequence)
        return state


def _read_export(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the manifest's metadata and the GGUF file of an exported folder. Raises ArtifactError
    for other folders.
    """
    about = artifacts.read_manifest(folder, kind=EXPORT_KIND, verify=False)
    validate_folder(folder)
    name: Any = about.get("file")
    each = about.get("bytes_per_position")
    named = (
        isinstance(name, str)
        and Path(name).name == name
        and all(isinstance(about.get(key), str) for key in ("name", "quant"))
    )
    if not named or type(each) is not int or each <= 0:
        raise ArtifactError(
            f"{folder} does not say what it holds",
            got="a manifest of other values",
            do="Run phisense export again",
        )
    if not (folder / name).is_file():
        raise ArtifactError(
            f"{folder} lacks its model", got=f"no {name}", do="Run phisense export again"
        )
    return about, folder / name


def _affordable_sequences(file: Path, sequence_bytes: int) -> int:
    """Number of sequences that fit into half of the memory left after loading the model."""
    free = available_memory()
    return (
        1
        if free is None
        else int(
            min(MAX_CACHED_SESSIONS, max(1, (free - file.stat().st_size) // 2 // sequence_bytes))
        )
    )


def _segments(keys: Sequence[int], start: int) -> Iterator[tuple[int, int]]:
    """Yield `(begin, end)` of the runs from `start` on that are computed in one call: text, or one
    image.
    """
    for _, run in itertools.groupby(range(start, len(keys)), key=lambda i: min(keys[i], 0)):
        places = list(run)
        yield places[0], places[-1] + 1
