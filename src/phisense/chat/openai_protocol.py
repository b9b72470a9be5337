"""Responses of a server with OpenAI's chat completions API: the list of its models, the events of a
streamed answer, and its error statuses as ChatErrors.

No error message reveals the server's address. The server's own error messages are only logged.
"""

from __future__ import annotations

import logging
import threading
from itertools import islice
from typing import Any

import orjson

from ..errors import ChatError
from .sse_client import HTTPStatusError, ServerAddress, StreamingRequest

API_KEY_VARIABLE = "PHISENSE_SERVER_KEY"
MAX_MODEL_LIST_LINES = 64  # response lines of /v1/models, each of at most 1 MiB

_logger = logging.getLogger(__name__)


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


def parse_event(data: bytes) -> tuple[str, bool]:
    """Return the text of an event, and whether it is the last one of the answer.

    Raises ChatError if the event is malformed or reports an error.
    """
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
            raise malformed_error(type(said).__name__)
        return said or "", choice.get("finish_reason") is not None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise malformed_error(type(error).__name__) from error


def malformed_error(got: str) -> ChatError:
    """The error for a response that is no answer; `got` says what it is instead."""
    return ChatError(
        "the model's server answers something that is no answer",
        got=got,
        wanted="a stream of OpenAI's chat completions",
    )


def to_chat_error(refused: HTTPStatusError) -> ChatError:
    """The error for a response with an HTTP error status, whose own message is only logged."""
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
