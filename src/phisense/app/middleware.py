"""ASGI middleware in front of Gradio: checks host and origin, route, body size and rate, visitor
and payload of every request.
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter, OrderedDict
from urllib.parse import parse_qs

import orjson

from ..errors import UsageError
from .allowed_hosts import AllowedHosts
from .asgi import (
    ASGIApp,
    ClientDisconnectError,
    Receive,
    RejectedError,
    Scope,
    Send,
    send_error,
)
from .fair_share import CLIENT_KEY, client_address, client_of, has_share
from .guarded_response import GuardedResponse
from .limits import Limits
from .request_body import (
    UploadQuota,
    max_upload_request_bytes,
    read_body,
    replay_body,
    spool_upload,
)
from .request_validation import (
    CALL_ROUTES,
    CallValidator,
    NotOwnerError,
    check_file_ownership,
    parse_json_body,
    validate_session_hash,
)
from .state_holder import FairStateHolder
from .uploads import Uploads
from .visitor import KNOWN_KEY, VISITOR_KEY, Owner, make_cookie, owner_of, read_visitor

_logger = logging.getLogger(__name__)

_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
_MIN_FILE_BYTES = 2**16  # charged to the quota per file at least, as each also takes a folder
_MAX_SESSIONS = 4096
_NO_COOKIE = (
    "Your browser sends no cookies here, so no upload is known to be yours. Open the page in a"
    " window of its own."
)

#: Every route that the page and its API clients request. Gradio has more, which this page does not
#: use.
_GET_ROUTES = re.compile(
    r"/($|config/?$|theme\.css$|favicon\.ico$|robots\.txt$|manifest\.json$|static/|assets/|svelte/"
    r"|gradio_api/(info/?$|app_id/?$|user/?$|login_check/?$|startup-events$|theme\.css$"
    r"|openapi\.json$|queue/(data|status)$|upload_progress$"
    r"|file=|heartbeat/[^/]+$|call/[^/]+/[^/]+$))"
)
_POST_ROUTES = re.compile(r"/gradio_api/(upload|cancel|reset|queue/join|(call|run|api)/[^/]+)/?$")


class RequestGuard:
    """ASGI middleware: limits body size and upload rate, rejects URLs as file inputs (SSRF), blocks
    unused Gradio routes.

    It wraps Gradio's whole application, CORS middleware included.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        allowed_hosts: AllowedHosts,
        uploads: Uploads,
        call_validator: CallValidator,
        state_holder: FairStateHolder,
        *,
        trust_forwarded: bool,
        max_open_requests: int,
    ) -> None:
        """`trust_forwarded` takes the client address from X-Forwarded-For; `max_open_requests`
        bounds the concurrent requests.
        """
        self.app = app
        self.limits = limits
        self.allowed_hosts = allowed_hosts
        self.uploads = uploads
        self.call_validator = call_validator
        self.state_holder = state_holder
        self.trust_forwarded, self.max_open_requests = trust_forwarded, max_open_requests
        self.upload_quota = UploadQuota(limits)
        self._sessions: OrderedDict[str, str] = OrderedDict()  # visitor secret by session hash
        self._open: Counter[str] = Counter()  # open requests by client
        # Admitted requests that Gradio may not have queued yet.
        self._unqueued: dict[GuardedResponse, Owner] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Validate an ASGI request, then pass it on to the app.

        A rejected HTTP request gets an error response; a websocket is closed with code 1008.
        """
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = GuardedResponse(send)
        visitor, known = read_visitor(scope["headers"])
        mine = client_of(
            client_address(scope.get("client"), scope["headers"], self.trust_forwarded),
            visitor,
            known,
        )
        scope = {**scope, VISITOR_KEY: visitor, KNOWN_KEY: known, CLIENT_KEY: mine}
        if not has_share(self._open, mine, self.max_open_requests):
            await _send_too_many(send, self._open[mine])
            return
        self._open[mine] += 1
        try:
            self.allowed_hosts.check(scope["headers"])
            await self.app(*await self._admit(scope, receive, answer), answer)
        except RejectedError as refused:
            await send_error(send, refused.status, refused.detail)
        except ClientDisconnectError:
            return
        except Exception as error:
            _logger.error("a request broke", exc_info=error)
            if not answer.started:
                await send_error(send, 500, "Something broke here, and was written down.")
        finally:
            self._open[mine] -= 1
            if not self._open[mine]:
                del self._open[mine]
            self._unqueued.pop(answer, None)

    async def _admit(
        self, scope: Scope, receive: Receive, answer: GuardedResponse
    ) -> tuple[Scope, Receive]:
        """Return the scope and receive channel to pass to Gradio. Raises RejectedError and
        ClientDisconnectError.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        routes = {"GET": _GET_ROUTES, "HEAD": _GET_ROUTES, "POST": _POST_ROUTES}.get(
            scope["method"]
        )
        if (
            routes is None
            or not routes.match(path)
            or b"deep_link" in scope.get("query_string", b"")
        ):
            raise RejectedError(404, "There is nothing here.")
        visitor, known = scope[VISITOR_KEY], scope[KNOWN_KEY]
        if not known and (scope["method"] == "POST" or path.rstrip("/") in ("", "/config")):
            answer.cookie = make_cookie(visitor, scope)
        if scope["method"] != "POST":
            self._check_get(path, scope, visitor, known)
            return scope, receive
        if path.rstrip("/") == _UPLOAD:
            return await self._admit_upload(scope, receive, answer)
        return await self._admit_call(scope, receive, answer, path)

    def _check_get(self, path: str, scope: Scope, visitor: str, known: bool) -> None:
        if path.startswith(_FILE):
            try:
                self.uploads.resolve(visitor, path.removeprefix(_FILE))
            except UsageError:
                raise RejectedError(404, "There is nothing here.") from None
        told = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        sessions = [
            *told.get("session_hash", []),
            *([path.rsplit("/", 1)[1]] if "/heartbeat/" in path else []),
        ]
        for session in sessions:
            self._check_session_owner(session, visitor, known)

    async def _admit_upload(
        self, scope: Scope, receive: Receive, answer: GuardedResponse
    ) -> tuple[Scope, Receive]:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if not re.fullmatch(rb"[0-9]{1,15}", length):
            raise RejectedError(411, "An upload must say how long it is.")
        if int(length) > max_upload_request_bytes(self.limits):
            raise RejectedError(
                413, f"The upload is too large; at most {self.limits.max_upload_bytes // 2**20} MB."
            )
        visitor, mine = scope[VISITOR_KEY], scope[CLIENT_KEY]
        self.upload_quota.check(mine)
        self.uploads.expire()
        held = await spool_upload(
            receive, self.limits, self.upload_quota, mine, headers.get(b"content-type", b"")
        )

        def uploaded(paths: list[str]) -> None:
            self.upload_quota.record(mine, _MIN_FILE_BYTES * len(paths))
            for one in paths:
                self.uploads.add(visitor, one)

        answer.on_uploaded = uploaded
        # The response is parsed for the paths it returns, so it must not be compressed.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        return {**scope, "headers": plain}, replay_body(held, receive)

    async def _admit_call(
        self, scope: Scope, receive: Receive, answer: GuardedResponse, path: str
    ) -> tuple[Scope, Receive]:
        visitor, known = scope[VISITOR_KEY], scope[KNOWN_KEY]
        request = parse_json_body(await read_body(receive, self.limits))
        way = CALL_ROUTES.match(path)
        try:
            if way is not None:
                request = self.call_validator.validate(
                    request, way["way"], way["name"], lambda file: self.uploads.owns(visitor, file)
                )
            else:
                check_file_ownership(request, lambda file: self.uploads.owns(visitor, file))
        except NotOwnerError:
            if known:
                raise
            # Without cookies, uploading the file again would not help.
            raise RejectedError(403, _NO_COOKIE) from None
        if isinstance(request, dict) and (session := request.get("session_hash")) is not None:
            self._check_session_owner(session, visitor, known)
            self.state_holder.register(session, *owner_of(scope))
        if way is not None and way["way"] in ("queue/join", "call"):
            answer.busy_message = (
                f"Busy: {self.limits.queue_size} questions are waiting"
                " already. Try again in a minute."
            )
            self._reserve_place(owner_of(scope), answer)
        body = orjson.dumps(request)
        about = (b"content-length", b"content-type", b"transfer-encoding")
        headers = [(name, value) for name, value in scope["headers"] if name not in about]
        headers += [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", b"application/json"),
        ]
        return {**scope, "headers": headers}, replay_body(io.BytesIO(body), receive)

    def _reserve_place(self, whose: Owner, answer: GuardedResponse) -> None:
        """Reserve a place in the queue until the request has been answered. Raises RejectedError
        (429) if the visitor or client holds its share already.
        """
        held = [*map(owner_of, self.call_validator.pending_requests()), *self._unqueued.values()]
        if whose[1] and held.count(whose) >= self.limits.max_queued_each:
            raise RejectedError(
                429,
                f"Busy: {self.limits.max_queued_each} questions of yours are waiting already."
                " Try again when"
                " one is answered.",
            )
        parties = Counter(mine for mine, _ in held)
        # A client's first request is left to Gradio's queue, which rejects it if full.
        if parties[whose[0]] and not has_share(parties, whose[0], self.limits.queue_size + 1):
            raise RejectedError(
                429,
                "Busy: as many questions of your address are waiting as may be. Try again in a"
                " minute.",
            )
        self._unqueued[answer] = whose

    def _check_session_owner(self, session: object, visitor: str, known: bool) -> None:
        """Bind a session hash to the first visitor with a cookie that uses it. Raises RejectedError
        (403) for another visitor.
        """
        name = validate_session_hash(session, self.limits)
        if name is None:
            return
        owner = self._sessions.get(name)
        if owner is not None and owner != visitor:
            raise RejectedError(403, "That session is another visitor's.")
        if known:
            self._sessions[name] = visitor
            self._sessions.move_to_end(name)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)


async def _send_too_many(send: Send, own_requests: int) -> None:
    if own_requests:
        await send_error(
            send,
            429,
            "Too many requests of your address are open at once. Close tabs that are not in use,"
            " and try again.",
        )
    else:
        await send_error(
            send, 503, "Busy: too many requests are open at once. Try again in a minute."
        )
