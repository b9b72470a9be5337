"""Inference engine on a remote server with OpenAI's chat completions API, such as vLLM,
`transformers serve` or llama-server.

The server holds the model and renders the prompt; this engine sends text, and images as data URLs.
The operator chooses the server's address, never a visitor, and no error message reveals it. What
the server answers is read by `openai_protocol`.
"""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from PIL.Image import Image, Resampling

from ..conversations import IMAGE, Message
from ..errors import ChatError, ConversationError
from ..families import DEFAULT_WINDOW, context_window, known_special_tokens
from ..prompt import Prompt, escape_special_tokens
from .batching import MAX_PLACES
from .engine import Sampling
from .openai_protocol import (
    API_KEY_VARIABLE,
    list_models,
    malformed_error,
    parse_event,
    to_chat_error,
)
from .sse_client import HTTPStatusError, ServerAddress, StreamingRequest

READ_TIMEOUT = 120.0  # seconds without any data
DEFAULT_IMAGE_TOKENS = 576  # CLIP-L/14-336 without pooling, if unknown
ENGLISH_CHARACTERS_PER_TOKEN = 3.5  # estimate for English text
MAX_PNG_PIXELS = 512 * 512  # pixels; larger images are sent as JPEG
MAX_IMAGE_SIDE = 2048  # pixels

#: By `owned_by` of a listed model: llama-cpp-python's server, unlike all others, applies a
#: repetition penalty unless it is disabled.
_EXTRA_BODY_BY_OWNER: dict[Any, dict[str, Any]] = {"me": {"repeat_penalty": 1.0}}


class RemoteEngine:
    """One server, any number of sessions. Scheduling and KV caching are up to the server."""

    kind = "remote"
    where = "the server's answers"
    attention_map = None
    places = MAX_PLACES

    def __init__(
        self,
        address: ServerAddress,
        model: str | None,
        *,
        name: str,
        explicit_model: bool = True,
        extra_body: dict[str, Any] | None = None,
        window: int = DEFAULT_WINDOW,
        picture_tokens: int = DEFAULT_IMAGE_TOKENS,
        prompt: Prompt | None = None,
        timeout: float = READ_TIMEOUT,
    ) -> None:
        self.address, self.model, self.name = address, model, name
        self.window = window
        self.picture_tokens = picture_tokens
        self.prompt = prompt
        self.timeout = timeout
        self._explicit_model, self._extra_body = explicit_model, extra_body or {}

    @classmethod
    def open(
        cls,
        server: str,
        *,
        model: str | None = None,
        folder: Path | None = None,
        window: int | None = None,
        picture_tokens: int | None = None,
        timeout: float = READ_TIMEOUT,
    ) -> RemoteEngine:
        """Query the server at the URL `server` for its models; `model` selects one of several.

        With the model's `folder`, tokens are counted exactly, otherwise estimated. Raises
        UsageError for an invalid URL, ChatError if the server is unreachable.
        """
        address = ServerAddress.parse(server, os.environ.get(API_KEY_VARIABLE))
        listed = list_models(address, min(timeout, 30.0))
        one = next(
            (entry for entry in listed if entry["id"] == model),
            listed[0] if len(listed) == 1 else {},
        )
        told = one.get("max_model_len")  # vLLM reports it
        prompt, slots, longest = (
            _read_folder(folder)
            if folder is not None
            else (None, DEFAULT_IMAGE_TOKENS, DEFAULT_WINDOW)
        )
        known = model or one.get("id")
        return cls(
            address,
            known,
            explicit_model=model is not None,
            extra_body=_EXTRA_BODY_BY_OWNER.get(one.get("owned_by")),
            name=folder.name if folder is not None else Path(known or "the server's model").name,
            window=window or min(longest, told if isinstance(told, int) else longest),
            picture_tokens=picture_tokens or slots,
            prompt=prompt,
            timeout=timeout,
        )

    @property
    def endpoint(self) -> str:
        """Server and model, without the API key."""
        at = self.address
        return f"{'https' if at.https else 'http'}://{at.host}:{at.port}{at.path} {self.model}"

    def encode_image(self, picture: Image) -> str:
        """Encode as a data URL: PNG if small, else JPEG, downscaled to at most `MAX_IMAGE_SIDE`,
        more than any vision tower uses.
        """
        held = io.BytesIO()
        if picture.width * picture.height <= MAX_PNG_PIXELS:
            picture.save(held, "PNG")
            return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        smaller = picture.copy()
        smaller.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE), Resampling.BICUBIC)
        smaller.save(held, "JPEG", quality=95, subsampling=0)
        return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[str]) -> int:
        """Exact with a folder's tokenizer; otherwise estimated from characters, plus a few tokens
        per message for its role tags.
        """
        if self.prompt is not None:
            return len(
                self.prompt.render_for_completion(messages, [self.picture_tokens] * len(seen))
            )
        return sum(
            round(len(m.text) / ENGLISH_CHARACTERS_PER_TOKEN) + 4 for m in messages
        ) + self.picture_tokens * len(seen)

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens in a user's text; without a tokenizer, those of every language
        family.
        """
        if self.prompt is not None:
            return self.prompt.escape_special_tokens(text)
        return escape_special_tokens(text, (*known_special_tokens(), IMAGE, "<s>", "</s>", "<unk>"))

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[str],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer in chunks. Raises ChatError if the server is unreachable, rejects the
        request, times out, or returns a malformed response.
        """
        body: dict[str, Any] = {
            "messages": self._to_openai_messages(messages, seen),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "stream": True,
            **self._extra_body,
        }
        if sampling.temperature > 0:
            body["top_p"] = sampling.top_p
        try:
            yield from self._request(body, self.model, stop)
        except HTTPStatusError as refused:
            # Retry without a model name: a server may list models that it does not serve
            # (transformers serve lists its cache), and then uses the one it has.
            if self._explicit_model or self.model is None or refused.status not in (400, 404, 422):
                raise to_chat_error(refused) from None
            try:
                for piece in self._request(body, None, stop):
                    self.model = None  # the name was the problem
                    yield piece
            except HTTPStatusError:
                raise to_chat_error(refused) from None

    def _request(
        self, body: dict[str, Any], model: str | None, stop: threading.Event
    ) -> Iterator[str]:
        asked = body if model is None else {"model": model, **body}
        exchange = StreamingRequest(
            self.address, "/chat/completions", orjson.dumps(asked), self.timeout
        )
        ended = False
        try:
            for line in exchange.lines(stop):
                # SSE: comments keep the connection alive, blank lines separate events
                if not line.startswith(b"data:"):
                    if line.startswith(b"{"):
                        raise malformed_error("no stream")
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                piece, last = parse_event(data)
                ended = ended or last
                if piece:
                    yield piece
            if not ended and not stop.is_set():
                raise ChatError(
                    "the model's server broke off in the middle of the answer", do="Ask again"
                )
        finally:
            exchange.close()

    def _to_openai_messages(
        self, messages: Sequence[Message], seen: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Convert to OpenAI's message format: `<image>` markers become image parts, and other
        special tokens are escaped.
        """
        markers = sum(m.text.count(IMAGE) for m in messages)
        if markers != len(seen):
            raise ConversationError(
                f"the conversation does not have one {IMAGE} for each picture",
                got=f"{markers}",
                wanted=f"{len(seen)}",
            )
        pictures = iter(seen)
        made: list[dict[str, Any]] = []
        for message in messages:
            first, *rest = (
                self.escape_special_tokens(text).strip() for text in message.text.split(IMAGE)
            )
            parts: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
            for text in rest:
                parts.append({"type": "image_url", "image_url": {"url": next(pictures)}})
                parts += [{"type": "text", "text": text}] if text else []
            made.append({"role": message.role, "content": parts if rest else first})
        return made


def _read_folder(folder: Path) -> tuple[Prompt, int, int]:
    """Return a model folder's prompt renderer, image tokens per image and context length; no
    weights are read.
    """
    from transformers import AutoTokenizer

    from ..model.folder import check_tokenizer, open_model_config
    from ..model.projectors.image_tokens import count_image_tokens
    from ..parts import load_auto

    config, tokenizer = open_model_config(folder), load_auto(AutoTokenizer, folder)
    check_tokenizer(folder, tokenizer, config)
    return Prompt(tokenizer), count_image_tokens(config), context_window(config)
