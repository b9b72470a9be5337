"""Gradio event handlers: they call `state` for one visitor, show errors as warnings, and return
conversations in Gradio's message format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import PhisenseError
from ..units import format_seconds
from .kept import dump_conversation, parse_conversation
from .sanitize import public_error_message, unescape_markdown
from .state import AppState, ChatLine, UserSession
from .uploads import Uploads
from .visitor import VISITOR_KEY

Messages = list[dict[str, Any]]
SessionState = UserSession | None


class EventHandlers:
    """Event handlers over one `AppState`. File paths from clients are resolved through `uploads`
    only.
    """

    def __init__(self, app: AppState, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    def ask(
        self,
        text: str,
        path: str | None,
        warmth: float,
        tokens: float,
        state: SessionState,
        request: gr.Request,
    ) -> Iterator[tuple[Messages, str, str, str, UserSession]]:
        """Stream the conversation. The textbox is cleared once the question is accepted.

        Yields the chat's messages, the textbox's text, the timing, what a browser may keep, and
        the session.
        """
        me = self._user_session(state, request, warmth, tokens)
        yield from self._stream(
            me, lambda: me.ask(text or "", self._resolve_upload(path, request, me)), keep=text
        )

    def ask_transcript(
        self,
        text: str,
        at_once: bool,
        path: str | None,
        warmth: float,
        tokens: float,
        state: SessionState,
        request: gr.Request,
    ) -> Iterator[tuple[Messages, Any, str, str, UserSession]]:
        """Send the transcript if `at_once` is set; otherwise leave it in its textbox for
        editing.
        """
        me = self._user_session(state, request, warmth, tokens)
        if not text or not at_once:
            # Skip, as an update would overwrite edits that the visitor has begun.
            yield to_gradio_messages(me.lines), gr.skip(), me.timing, self._kept(me), me
            return
        yield from self._stream(
            me, lambda: me.ask(text, self._resolve_upload(path, request, me)), keep=text
        )

    def retry(
        self,
        path: str | None,
        box: str,
        warmth: float,
        tokens: float,
        state: SessionState,
        request: gr.Request,
        event: gr.RetryData,
    ) -> Iterator[tuple[Messages, str, str, str, UserSession]]:
        """Regenerate the answer at `event.index`; later turns are dropped.

        Yields as `ask` does.
        """
        me = self._user_session(state, request, warmth, tokens)
        yield from self._stream(
            me,
            lambda: me.retry(_line_index(event.index), self._resolve_upload(path, request, me)),
            keep=box,
            then=box,
        )

    def edit(
        self,
        path: str | None,
        box: str,
        warmth: float,
        tokens: float,
        state: SessionState,
        request: gr.Request,
        event: gr.EditData,
    ) -> Iterator[tuple[Messages, str, str, str, UserSession]]:
        """Replace the question at `event.index` and answer the new one; yields as `ask` does."""
        me = self._user_session(state, request, warmth, tokens)
        new = unescape_markdown(event.value) if isinstance(event.value, str) else ""
        yield from self._stream(
            me,
            lambda: me.retry(
                _line_index(event.index), self._resolve_upload(path, request, me), new
            ),
            keep=box,
            then=box,
        )

    def undo(
        self, state: SessionState, request: gr.Request, event: gr.UndoData
    ) -> tuple[Messages, str, str, UserSession]:
        """Remove the question at `event.index` and put its text back into the textbox."""
        me = self._user_session(state, request)
        try:
            with me.turn():
                text = me.undo(_line_index(event.index))
        except PhisenseError as error:
            gr.Warning(public_error_message(error))
            text = ""
        return to_gradio_messages(me.lines), text, self._kept(me), me

    def set_image(
        self, path: str | None, state: SessionState, request: gr.Request
    ) -> tuple[Messages, str, UserSession]:
        """Handle an added or removed image: it is encoded while the visitor types."""
        me = self._user_session(state, request)
        try:
            with me.turn():
                # Already reported: the browser sends a change event twice.
                if path is not None and Path(path) == me.rejected_image:
                    return to_gradio_messages(me.lines), self._kept(me), me
                me.set_image(self._resolve_upload(path, request, me))
        except Exception as error:  # noqa: BLE001, the border: every error is shown on the page
            gr.Warning(public_error_message(error))
        return to_gradio_messages(me.lines), self._kept(me), me

    def restore(
        self, kept: str, path: str | None, state: SessionState, request: gr.Request
    ) -> tuple[Messages, str, UserSession]:
        """Go on with a conversation that the browser kept, about the picture that it uploaded."""
        me = self._user_session(state, request)
        try:
            conversation = parse_conversation(kept or "", self.app.limits)
            with me.turn():
                self._restore_image(path, request, me)
                me.restore(conversation)
        except Exception as error:  # noqa: BLE001, the border: every error is shown on the page
            gr.Warning(public_error_message(error))
        return to_gradio_messages(me.lines), self._kept(me), me

    def transcribe(
        self, path: str | None, language: str | None, request: gr.Request
    ) -> tuple[str, str]:
        """Return the transcript and its description; `language` "" means automatic detection."""
        try:
            heard = self.app.transcribe(self._resolve_upload(path, request), language or None)
        except Exception as error:  # noqa: BLE001, the border: every error is shown on the page
            gr.Warning(public_error_message(error))
            return "", ""
        return heard.text, " ".join(
            [
                f"Heard {heard.language_description}, {format_seconds(heard.seconds)}.",
                *heard.warnings,
            ]
        )

    def show_attention(self, state: SessionState, request: gr.Request) -> Any:
        """Show the attention map of the last answer; returns an update of the image component."""
        try:
            if state is None:
                raise PhisenseError("there is no answer yet", do="Ask something")
            with state.turn():
                shown = state.attention_overlay()
            saved = self.uploads.save_image(_visitor_secret(request), shown)
            return gr.update(value=str(saved), visible=True)
        except Exception as error:  # noqa: BLE001, the border: every error is shown on the page
            gr.Warning(public_error_message(error))
            return gr.update(visible=False)

    def stop(self, state: SessionState, request: gr.Request) -> None:
        """Stop the running generation."""
        me = state or self.app.find_session(request.session_hash)
        if me is not None:
            me.stop.set()

    def clear(
        self, state: SessionState, request: gr.Request
    ) -> tuple[Messages, str, str, UserSession]:
        """Start a new conversation; returns empty messages, no timing, nothing to keep, and the
        session.
        """
        me = self._user_session(state, request)
        try:
            me.clear()
        except PhisenseError as error:
            gr.Warning(public_error_message(error))
        return to_gradio_messages(me.lines), "", self._kept(me), me

    def close_session(self, request: gr.Request) -> None:
        """Close the session of a visitor who left the page."""
        self.app.close_session(request.session_hash)

    def _kept(self, me: UserSession) -> str:
        return dump_conversation(me.session, self.app.limits)

    def _restore_image(self, path: str | None, request: gr.Request, me: UserSession) -> None:
        """Set the image of a kept conversation; one that is refused leaves its words."""
        try:
            me.set_image(self._resolve_upload(path, request, me))
        except PhisenseError as error:
            gr.Warning(public_error_message(error))

    def _user_session(
        self,
        state: SessionState,
        request: gr.Request,
        warmth: float | None = None,
        tokens: float | None = None,
    ) -> UserSession:
        me = (
            state
            or self.app.find_session(request.session_hash)
            or self.app.create_session(request.session_hash)
        )
        # A tab that lost its connection and reconnected was treated as closed.
        if request.session_hash is not None:
            self.app.sessions[request.session_hash] = me
        if warmth is not None and tokens is not None:
            me.set_sampling(warmth, tokens)
        return me

    def _resolve_upload(
        self, path: str | None, request: gr.Request, me: UserSession | None = None
    ) -> Path | None:
        """Return the upload at `path`. Raises UsageError if it is not the visitor's. The current
        image is in memory, so its file may be gone already.
        """
        if not path:
            return None
        if me is not None and me.image_path == Path(path):
            return me.image_path
        return self.uploads.resolve(_visitor_secret(request), path)

    def _stream(
        self,
        me: UserSession,
        steps: Callable[[], Iterator[list[ChatLine]]],
        *,
        keep: str,
        then: str = "",
    ) -> Iterator[tuple[Messages, str, str, str, UserSession]]:
        """Yield the steps; on an error the textbox keeps `keep`, else it becomes `then`."""
        try:
            with me.turn():
                for lines in steps():
                    yield to_gradio_messages(lines), then, me.timing, self._kept(me), me
        except Exception as error:  # noqa: BLE001, the border: every error is shown on the page
            gr.Warning(public_error_message(error))
            yield to_gradio_messages(me.lines), keep, me.timing, self._kept(me), me


def to_gradio_messages(lines: Sequence[ChatLine]) -> Messages:
    """Convert to Gradio's message format. A notice becomes an assistant message in italics; it is
    not a turn of the model.

    Content is a list of parts because Gradio strips the indentation of plain string content.
    """
    texts = (
        (line.role, f"*{line.text}*" if line.role == "notice" else line.text) for line in lines
    )
    return [
        {
            "role": "user" if who == "user" else "assistant",
            "content": [{"type": "text", "text": text}],
        }
        for who, text in texts
    ]


def _visitor_secret(request: gr.Request) -> str:
    """Return the visitor's secret, which `RequestGuard` put into the request's scope."""
    return str(request.request.scope[VISITOR_KEY])


def _line_index(index: Any) -> int:
    return index if isinstance(index, int) else -1
