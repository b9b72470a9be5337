"""The engine that is elsewhere: any server that speaks OpenAI's chat protocol, such as vLLM, `transformers serve` or llama-server.

The server holds the model and makes the prompt; here are only the words, pictures as data URLs, and the patience to wait. Its address is
chosen by whoever starts phisense, never by a visitor, and no error says it. What the server says of an error goes to the log.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from PIL.Image import Image, Resampling

from ..conversations import IMAGE, Message
from ..errors import ChatError, ConversationError
from ..prompt import CONTROL_TOKENS, Prompt, break_tokens
from .engine import Sampling
from .exchange import Address, Exchange, Refused

KEY = "PHISENSE_SERVER_KEY"
PATIENCE = 120.0  # seconds without a word
WINDOW = 4096  # tokens, where neither the server nor a folder says
PICTURE_TOKENS = 576  # likewise: CLIP-L/14-336 without pooling
CHARACTERS = 3.5  # a token, in English
LOSSLESS = 512 * 512  # pixels; larger pictures travel as JPEG
LONGEST_SIDE = 2048  # pixels

#: By what a server signs its models with: llama-cpp-python's, unlike all others, punishes repetition unless told not to.
_PLAIN: dict[Any, dict[str, Any]] = {"me": {"repeat_penalty": 1.0}}

log = logging.getLogger(__name__)


class RemoteEngine:
    """One server, any number of sessions: who waits for whom is the server's affair, and so is what it keeps between turns."""

    def __init__(
        self,
        address: Address,
        model: str | None,
        *,
        name: str,
        chosen: bool = True,
        besides: dict[str, Any] | None = None,
        window: int = WINDOW,
        picture_tokens: int = PICTURE_TOKENS,
        prompt: Prompt | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.address, self.model, self.name = address, model, name
        self.window, self.picture_tokens, self.prompt, self.patience = window, picture_tokens, prompt, patience
        self._chosen, self._besides = chosen, besides or {}

    @classmethod
    def open(
        cls,
        server: str,
        *,
        model: str | None = None,
        folder: Path | None = None,
        window: int | None = None,
        picture_tokens: int | None = None,
        patience: float = PATIENCE,
    ) -> RemoteEngine:
        """Asks the server at the URL `server` which model it has; `model` chooses among several.

        With the model's `folder` at hand tokens are counted exactly, else estimated. Raises UsageError for what is no address or a model
        that the server does not name, ChatError if the server is away.
        """
        address = Address.parse(server, os.environ.get(KEY))
        listed = list_models(address, min(patience, 30.0))
        one = next((entry for entry in listed if entry["id"] == model), listed[0] if len(listed) == 1 else {})
        told = one.get("max_model_len")  # vLLM says it
        prompt, slots, longest = _local(folder) if folder is not None else (None, PICTURE_TOKENS, WINDOW)
        known = model or one.get("id")
        return cls(
            address,
            known,
            chosen=model is not None,
            besides=_PLAIN.get(one.get("owned_by")),
            name=folder.name if folder is not None else Path(known or "the server's model").name,
            window=window or min(longest, told if isinstance(told, int) else longest),
            picture_tokens=picture_tokens or slots,
            prompt=prompt,
            patience=patience,
        )

    @property
    def whom(self) -> str:
        """Server and model, without the key."""
        at = self.address
        return f"{'https' if at.secure else 'http'}://{at.host}:{at.port}{at.path} {self.model}"

    def see(self, picture: Image) -> str:
        """A data URL: PNG if small, else JPEG, not larger than any tower looks."""
        held = io.BytesIO()
        if picture.width * picture.height <= LOSSLESS:
            picture.save(held, "PNG")
            return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        smaller = picture.copy()
        smaller.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Resampling.BICUBIC)
        smaller.save(held, "JPEG", quality=95, subsampling=0)
        return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"

    def count(self, messages: Sequence[Message], seen: Sequence[str]) -> int:
        """Exact with a folder's tokenizer; else from characters, and some for each message's tags."""
        if self.prompt is not None:
            return len(self.prompt.ask(messages, [self.picture_tokens] * len(seen)))
        return sum(round(len(m.text) / CHARACTERS) + 4 for m in messages) + self.picture_tokens * len(seen)

    def defuse(self, text: str) -> str:
        if self.prompt is not None:
            return self.prompt.defuse(text)
        return break_tokens(text, (*CONTROL_TOKENS, IMAGE, "<s>", "</s>", "<unk>"))

    def stream(
        self, messages: Sequence[Message], seen: Sequence[str], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        """Raises ChatError: the server is away, refuses, is silent, or answers what is no answer."""
        body: dict[str, Any] = {
            "messages": self._content(messages, seen),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "stream": True,
            **self._besides,
        }
        if sampling.temperature > 0:
            body["top_p"] = sampling.top_p
        try:
            yield from self._ask(body, self.model, stop)
        except Refused as refused:
            # A server that lists models it does not serve (transformers serve lists its cache) knows better itself which one it has.
            if self._chosen or self.model is None or refused.status not in (400, 404, 422):
                raise self._refusal(refused) from None
            try:
                for piece in self._ask(body, None, stop):
                    self.model = None  # it was the name
                    yield piece
            except Refused:
                raise self._refusal(refused) from None

    def _ask(self, body: dict[str, Any], model: str | None, stop: threading.Event) -> Iterator[str]:
        asked = body if model is None else {"model": model, **body}
        exchange = Exchange(self.address, "/chat/completions", orjson.dumps(asked), self.patience)
        ended = False
        try:
            for line in exchange.lines(stop):
                if not line.startswith(b"data:"):  # comments keep the connection awake; blank lines part the events
                    if line.startswith(b"{"):
                        raise _malformed("no stream")
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                piece, last = _piece(data)
                ended = ended or last
                if piece:
                    yield piece
            if not ended and not stop.is_set():
                raise ChatError("the model's server broke off in the middle of the answer", do="Ask again")
        finally:
            exchange.close()

    def _content(self, messages: Sequence[Message], seen: Sequence[str]) -> list[dict[str, Any]]:
        """OpenAI's messages: `<image>` markers become the pictures, and what else looks like a control token is broken."""
        markers = sum(m.text.count(IMAGE) for m in messages)
        if markers != len(seen):
            raise ConversationError(f"the conversation does not have one {IMAGE} for each picture", got=f"{markers}", wanted=f"{len(seen)}")
        pictures = iter(seen)
        made: list[dict[str, Any]] = []
        for message in messages:
            first, *rest = (self.defuse(text).strip() for text in message.text.split(IMAGE))
            parts: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
            for text in rest:
                parts.append({"type": "image_url", "image_url": {"url": next(pictures)}})
                parts += [{"type": "text", "text": text}] if text else []
            made.append({"role": message.role, "content": parts if rest else first})
        return made

    def _refusal(self, refused: Refused) -> ChatError:
        log.warning("the server said, with status %d: %s", refused.status, refused.body[:2000])
        known = {
            401: ("the model's server wants another key", f"Whoever runs this must set {KEY}"),
            403: ("the model's server wants another key", f"Whoever runs this must set {KEY}"),
            404: ("the model's server does not have this model", "Whoever runs this must name one that it has"),
            413: ("the picture or the question is too large for the model's server", "Take a smaller one"),
            429: ("the model's server is busy", "Ask again later"),
            503: ("the model's server is busy", "Ask again later"),
        }
        fallback = (
            "the model's server failed" if refused.status >= 500 else "the model's server refused the question",
            "Ask otherwise or later",
        )
        what, do = known.get(refused.status, fallback)
        return ChatError(what, got=f"status {refused.status}", do=do)


def list_models(address: Address, patience: float = 30.0) -> list[dict[str, Any]]:
    """What `/v1/models` names. Raises ChatError if the server is away or that is no list of models."""
    exchange = Exchange(address, "/models", None, patience)
    try:
        told = orjson.loads(b"\n".join(exchange.lines(threading.Event())))
        return [entry for entry in told["data"] if isinstance(entry["id"], str)]
    except Refused as refused:
        if refused.status == 500:  # transformers serve, where nothing was ever fetched from the hub: it lists that folder, and trips
            return []
        raise ChatError(
            "there is no OpenAI-compatible server at that address, or it wants a key",
            got=f"status {refused.status} for {address.path}/models",
            do=f"Check the address; a key is taken from the environment's {KEY}",
        ) from refused
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ChatError("there is no OpenAI-compatible server at that address", got="no list of models") from error
    finally:
        exchange.close()


def _piece(data: bytes) -> tuple[str, bool]:
    """What one event says, and whether it is the last one of the answer."""
    try:
        told = orjson.loads(data)
        if "error" in told:
            log.warning("the server said in its answer: %s", str(told["error"])[:2000])
            raise ChatError("the model's server failed in the middle of the answer", do="Ask again later")
        if not told["choices"]:  # figures on use
            return "", False
        choice = told["choices"][0]
        said = choice.get("delta", {}).get("content")
        if said is not None and not isinstance(said, str):
            raise _malformed(type(said).__name__)
        return said or "", choice.get("finish_reason") is not None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _malformed(type(error).__name__) from error


def _malformed(got: str) -> ChatError:
    return ChatError("the model's server answers something that is no answer", got=got, wanted="a stream of OpenAI's chat completions")


def _local(folder: Path) -> tuple[Prompt, int, int]:
    """A model folder's tokenizer, the positions of a picture, and the window: nothing of its weights."""
    from transformers import AutoConfig, AutoTokenizer

    from ..model.assembly import _window
    from ..model.projectors import picture_slots

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return Prompt(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)), picture_slots(config), _window(config, WINDOW)
