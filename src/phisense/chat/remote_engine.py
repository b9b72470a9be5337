"""Inference engine on a remote server with OpenAI's chat completions API, such as vLLM,
`transformers serve` or llama-server.

The server holds the model and renders the prompt; this engine sends text, and images as data URLs.
The operator chooses the server's address, never a visitor, and no error message reveals it. The
server's own error messages are only logged.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from PIL.Image import Image, Resampling

from ..conversations import IMAGE, Message
from ..errors import ChatError, ConversationError
from ..families import DEFAULT_WINDOW, context_window, known_special_tokens
from ..prompt import Prompt, escape_special_tokens
from .engine import Sampling
from .sse_client import HTTPStatusError, ServerAddress, StreamingRequest

API_KEY_VARIABLE = "PHISENSE_SERVER_KEY"
READ_TIMEOUT = 120.0  # seconds without any data
DEFAULT_IMAGE_TOKENS = 576  # CLIP-L/14-336 without pooling, if unknown
ENGLISH_CHARACTERS_PER_TOKEN = 3.5  # estimate for English text
MAX_PNG_PIXELS = 512 * 512  # pixels; larger images are sent as JPEG
MAX_IMAGE_SIDE = 2048  # pixels
MAX_MODEL_LIST_LINES = 64  # response lines of /v1/models, each of at most 1 MiB

#: By `owned_by` of a listed model: llama-cpp-python's server, unlike all others, applies a
#: repetition penalty unless it is disabled.
_EXTRA_BODY_BY_OWNER: dict[Any, dict[str, Any]] = {"me": {"repeat_penalty": 1.0}}

_logger = logging.getLogger(__name__)


class RemoteEngine:
    """One server, any number of sessions. Scheduling and KV caching are up to the server."""

    kind = "remote"
    where = "the server's answers"
    attention_map = None

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
                raise self._to_chat_error(refused) from None
            try:
                for piece in self._request(body, None, stop):
                    self.model = None  # the name was the problem
                    yield piece
            except HTTPStatusError:
                raise self._to_chat_error(refused) from None

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
                        raise _malformed_error("no stream")
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                piece, last = _parse_event(data)
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

    def _to_chat_error(self, refused: HTTPStatusError) -> ChatError:
        _logger.warning("the server said, with status %d: %s", refused.status, refused.body[:2000])
        known = {
            401: (
                "the model's server wants another key",
                f"Whoever runs this must set {API_KEY_VARIABLE}",
            ),
            403: (
                "the model's server wants another key",
                f"Whoever runs this must set {API_KEY_VARIABLE}",
            ),
            404: (
                "the model's server does not have this model",
                "Whoever runs this must name one that it has",
            ),
            413: (
                "the picture or the question is too large for the model's server",
                "Take a smaller one",
            ),
            429: ("the model's server is busy", "Ask again later"),
            503: ("the model's server is busy", "Ask again later"),
        }
        fallback = (
            (
                "the model's server failed"
                if refused.status >= 500
                else "the model's server refused the question"
            ),
            "Ask otherwise or later",
        )
        what, do = known.get(refused.status, fallback)
        return ChatError(what, got=f"status {refused.status}", do=do)


def list_models(
    address: ServerAddress, timeout: float = 30.0, stop: threading.Event | None = None
) -> list[dict[str, Any]]:
    """Return the entries of `/v1/models`. Raises ChatError if the server is unreachable, the
    response is not a list of models, or `stop` was set before it was complete.
    """
    exchange = StreamingRequest(address, "/models", None, timeout)
    try:
        told = orjson.loads(
            b"\n".join(islice(exchange.lines(stop or threading.Event()), MAX_MODEL_LIST_LINES))
        )
        return [entry for entry in told["data"] if isinstance(entry["id"], str)]
    except HTTPStatusError as refused:
        if (
            refused.status == 500
            # transformers serve with a Hub cache folder that does not exist: listing it fails
        ):
            return []
        raise ChatError(
            "there is no OpenAI-compatible server at that address, or it wants a key",
            got=f"status {refused.status} for {address.path}/models",
            do=f"Check the address; a key is taken from the environment's {API_KEY_VARIABLE}",
        ) from refused
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ChatError(
            "there is no OpenAI-compatible server at that address", got="no list of models"
        ) from error
    finally:
        exchange.close()


def _parse_event(data: bytes) -> tuple[str, bool]:
    """Return the text of an event, and whether it is the last one of the answer."""
    try:
        told = orjson.loads(data)
        if "error" in told:
            _logger.warning("the server said in its answer: %s", str(told["error"])[:2000])
            raise ChatError(
                "the model's server failed in the middle of the answer", do="Ask again later"
            )
        if not told["choices"]:  # usage statistics
            return "", False
        choice = told["choices"][0]
        said = choice.get("delta", {}).get("content")
        if said is not None and not isinstance(said, str):
            raise _malformed_error(type(said).__name__)
        return said or "", choice.get("finish_reason") is not None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _malformed_error(type(error).__name__) from error


def _malformed_error(got: str) -> ChatError:
    return ChatError(
        "the model's server answers something that is no answer",
        got=got,
        wanted="a stream of OpenAI's chat completions",
    )


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
