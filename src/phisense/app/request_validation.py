"""Validation of API requests: each is parsed once, checked against the page's components, and
rebuilt from the validated values only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import gradio as gr

from .asgi import RejectedError, Scope
from .limits import Limits
from .uploads import NOT_AN_UPLOAD

_URL = re.compile(r"^\s*[a-zA-Z][a-zA-Z0-9+.-]+:|^\s*//")
_FILE_META = {"_type": "gradio.FileData"}
_MAX_DEPTH = 16
_MAX_NUMBER = 2**53
_MAX_SAMPLES = 100
_REQUIRED_EVENT_KEYS = {
    "select": ("index", "value"),
    "retry": ("index", "value"),
    "undo": ("index", "value"),
    "edit": ("index", "value", "previous_value"),
}
OwnsFile = Callable[[object], bool]

#: Gradio's call routes; the function name is part of some of the paths.
CALL_ROUTES = re.compile(r"^/gradio_api/(?P<way>queue/join|call|run|api)(?:/(?P<name>[^/]+))?/?$")


def parse_json_body(body: bytes) -> Any:
    """Parse a request's JSON.

    Raises RejectedError (400) for invalid JSON, NaN, infinite or too large numbers, lone
    surrogates, null characters, and nesting deep enough to break a later recursion.
    """
    try:
        value = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise RejectedError(400, "The request is not JSON.") from None
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise RejectedError(400, "The request is nested too deeply.")
        if isinstance(one, dict):
            waiting += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            waiting += [(part, depth + 1) for part in one]
        elif isinstance(one, str):
            _check_text(one)
        elif isinstance(one, int | float) and not abs(one) <= _MAX_NUMBER:
            # also rejects 1e999, which parses as inf
            raise RejectedError(400, "A number of the request is too large.")
    return value


def _reject_constant(name: str) -> None:
    raise RejectedError(400, "A number of the request is none.")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedError(400, "A text of the request holds half a character.") from None
    if "\0" in text:
        raise RejectedError(400, "A text of the request holds a null character.")


def check_file_ownership(value: Any, owns: OwnsFile) -> None:
    """Check every file reference, at any depth: it must be in the form that the upload returned and
    belong to the visitor. Raises RejectedError (400 or 403).
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "path" in one or "url" in one:
                _check_owner(one, owns)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


class NotOwnerError(RejectedError):
    """Status 403: the file is not an upload of the requesting visitor."""

    def __init__(self) -> None:
        what, do = NOT_AN_UPLOAD
        super().__init__(403, f"{what[0].upper()}{what[1:]}. {do}.")


def _check_owner(file: dict[str, Any], owns: OwnsFile) -> None:
    path = file.get("path")
    if isinstance(path, str) and _URL.match(path):
        raise RejectedError(400, "Addresses are not fetched here. Upload the file itself.")
    if not owns(path) or file.get("meta") != _FILE_META:
        raise NotOwnerError


def validate_session_hash(value: object, limits: Limits) -> str | None:
    """Return the session hash (letters, digits, dashes, underscores), or None. Raises RejectedError
    (400).
    """
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(
        rf"[A-Za-z0-9_-]{{1,{limits.max_session_hash_length}}}", value
    ):
        raise RejectedError(
            400,
            f"A session's name has 1 to {limits.max_session_hash_length} letters, digits and"
            " dashes.",
        )
    return value


class ValidatedCall(TypedDict):
    """A call as Gradio's routes take it; what the request did not have is left out."""

    data: list[Any]
    session_hash: NotRequired[str]
    fn_index: NotRequired[int]
    trigger_id: NotRequired[int]
    event_data: NotRequired[Any]


class CallValidator:
    """Validates calls against the functions and components of one page."""

    def __init__(self, page: gr.Blocks, limits: Limits) -> None:
        self.page, self.limits = page, limits

    def validate(self, request: Any, route: str, name: str | None, owns: OwnsFile) -> ValidatedCall:
        """Rebuild the request from only the fields that the page's function takes.

        Raises RejectedError: 400 for a malformed call, 403 for a file of another visitor, 404 for
        an unknown function.
        """
        if not isinstance(request, dict) or not isinstance(request.get("data"), list):
            raise RejectedError(400, 'A request is an object with "data", a list.')
        check_file_ownership(request, owns)
        session = validate_session_hash(request.get("session_hash"), self.limits)
        if route == "queue/join" and session is None:
            raise RejectedError(400, 'A request to the queue needs its "session_hash".')
        function = self._function(None if route == "call" else request.get("fn_index"), name)
        made = ValidatedCall(data=self._data(function, request["data"]))
        if session is not None:
            made["session_hash"] = session
        if route != "call":
            trigger = request.get("trigger_id")
            if trigger is not None and (
                not _is_integer(trigger) or trigger not in self.page.blocks
            ):
                raise RejectedError(400, "There is nothing of that number on the page.")
            made["fn_index"] = function._id
            if trigger is not None:
                made["trigger_id"] = trigger
            if (event := self._event(function, request.get("event_data"))) is not None:
                made["event_data"] = event
        elif any(event in _REQUIRED_EVENT_KEYS for _, event in function.targets):
            raise RejectedError(404, "That function is for the page's own buttons.")
        return made

    def pending_requests(self) -> list[Scope]:
        """ASGI scopes of the requests that are queued or being processed."""
        queue = self.page._queue
        waiting = [
            event for one in queue.event_queue_per_concurrency_id.values() for event in one.queue
        ]
        return [
            event.request.scope
            for event in [*waiting, *(event for job in queue.active_jobs for event in job or ())]
        ]

    def _function(self, index: object, name: str | None) -> Any:
        for number, function in self.page.fns.items():
            if (_is_integer(index) and number == index) or (
                index is None and name is not None and function.api_name == name
            ):
                return function
        raise RejectedError(404, "The page has no such function.")

    def _data(self, function: Any, data: list[Any]) -> list[Any]:
        """Return one value per input, in order. State inputs, which API clients do not send, may be
        omitted.
        """
        inputs = function.inputs
        given = [block for block in inputs if not block.skip_api]
        if len(data) == len(inputs):
            values = data
        elif len(data) == len(given):
            rest = iter(data)
            values = [None if block.skip_api else next(rest) for block in inputs]
        else:
            raise RejectedError(400, f"That function takes {len(given)} values.")
        return [
            _validate_value(block, value, place)
            for place, (block, value) in enumerate(zip(inputs, values, strict=True), 1)
        ]

    def _event(self, function: Any, event: Any) -> Any:
        needed = [
            _REQUIRED_EVENT_KEYS[name]
            for _, name in function.targets
            if name in _REQUIRED_EVENT_KEYS
        ]
        if needed and not (
            isinstance(event, dict)
            and all(key in event for key in needed[0])
            and _is_index(event["index"])
        ):
            raise RejectedError(400, "The request does not say what was chosen.")
        return event


def _validate_value(block: Any, value: Any, position: int) -> Any:
    """Return the value as the component accepts it. Raises RejectedError (400)."""
    if not any(isinstance(block, kind) and fits(value) for kind, fits in _COMPONENT_CHECKS):
        raise RejectedError(400, f"Value {position} is of another kind than the page takes.")
    if isinstance(block, gr.Slider) and not block.minimum <= value <= block.maximum:
        raise RejectedError(
            400, f"Value {position} must be between {block.minimum} and {block.maximum}."
        )
    if isinstance(block, gr.Dropdown) and value not in (
        None,
        *(choice for _, choice in block.choices),
    ):
        raise RejectedError(400, f"Value {position} is none of the choices.")
    if isinstance(value, dict):  # a file: the page uses only its path
        return {"path": value["path"], "meta": _FILE_META}
    return value


def _is_file(value: object) -> bool:
    return value is None or (isinstance(value, dict) and "path" in value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_COMPONENT_CHECKS: tuple[tuple[Any, Callable[[Any], bool]], ...] = (
    (gr.State, lambda value: value is None),  # the server holds the state
    (gr.Image, _is_file),
    (gr.Audio, _is_file),
    (gr.Slider, lambda value: _is_integer(value) or isinstance(value, float)),
    (gr.Dropdown, lambda value: value is None or isinstance(value, str)),
    (gr.Checkbox, lambda value: isinstance(value, bool)),
    (gr.Textbox, lambda value: value is None or isinstance(value, str)),
    (gr.Dataset, lambda value: _is_integer(value) and 0 <= value < _MAX_SAMPLES),
)
