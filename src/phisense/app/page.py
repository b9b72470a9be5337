"""The Gradio page: layout.py has its components, events.py what each of them does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ..chat import Engine
from ..speech import Transcriber
from .allowed_hosts import AllowedHosts
from .events import wire_events
from .examples import Example
from .fair_share import open_request_capacity
from .handlers import EventHandlers
from .idle_connections import close_idle_connections
from .layout import lay_out
from .limits import Limits
from .middleware import RequestGuard
from .request_validation import CallValidator
from .state import AppState
from .state_holder import FairStateHolder
from .uploads import Uploads

_HERE = Path(__file__).parent


def build(
    engine: Engine,
    transcriber: Transcriber | None = None,
    examples: Sequence[Example] = (),
    limits: Limits | None = None,
) -> gr.Blocks:
    """Build the page over one engine. Without `transcriber` the voice tab explains how to enable
    it.

    The returned page has two extra attributes: `room`, the shared `AppState`, and `uploads`, the
    ownership of uploaded files.
    """
    room = AppState(engine, transcriber, limits or Limits())
    uploads = Uploads(
        Path(get_upload_folder()), room.limits.max_upload_bytes, room.limits.retention_seconds
    )
    shown = _served_examples(examples, uploads)
    room.examples.update((str(one.image), None) for one in shown)
    # Gradio deletes old uploads periodically, so a deleted file may be older by one period.
    often = room.limits.retention_seconds // 6
    with gr.Blocks(
        title="phisense",
        delete_cache=(often, room.limits.retention_seconds - often),
        analytics_enabled=False,
    ) as page:
        page.room, page.uploads = room, uploads
        widgets = lay_out(room, shown)
        wire_events(page, widgets, EventHandlers(room, uploads), shown)
    _pass_paths_only(widgets.image.picture, widgets.voice.sound)
    return page


def _served_examples(examples: Sequence[Example], uploads: Uploads) -> list[Example]:
    """The examples, with their images copied to where Gradio serves files from."""
    shown = [
        Example(Path(save_file_to_cache(example.image, get_upload_folder())), example.questions)
        for example in examples
    ]
    for example in shown:
        uploads.share(str(example.image))
    return shown


def _pass_paths_only(*media: Any) -> None:
    """Skip Gradio's preprocessing: it would decode images before any limit applies, convert audio,
    and write the content of `data:` URLs.
    """
    for component in media:
        component.preprocess = lambda payload: None if payload is None else payload.path


def launch(
    page: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    block: bool = True,
    allowed_hosts: Sequence[str] = (),
) -> Any:
    """Serve the page with limits on uploads and queue.

    `port` 0 takes a free port. `allowed_hosts` are additional host names, such as a proxy's; those
    of a Space and of a share link are added automatically.
    """
    limits: Limits = page.room.limits
    names = AllowedHosts(host, [*allowed_hosts, *filter(None, [os.environ.get("SPACE_HOST")])])
    # A Space is reachable only through the Hub's proxy, which sets X-Forwarded-For.
    if os.environ.get("SPACE_ID"):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    # api_open=False: API calls cannot bypass the queue.
    page.queue(max_size=limits.queue_size, default_concurrency_limit=2, api_open=False)
    told = page.launch(
        server_name=host,
        server_port=port or None,
        max_file_size=limits.max_upload_bytes,
        state_session_capacity=limits.max_sessions,
        prevent_thread_lock=True,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,  # a Node server would run in front of RequestGuard
        run_history=False,  # Gradio would keep every conversation in the browser, unasked
        theme=_theme(),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"lifespan": _lifespan(page, names)},
    )
    if page.share_url:
        names.allow(page.share_url)
    if block:
        page.block_thread()
    return told


def _theme() -> gr.themes.Base:
    """Gradio's Soft, with text that contrasts by 4.5 to 1 at least, as WCAG 2 AA wants it."""
    theme = gr.themes.Soft(  # system fonts: nothing is downloaded
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        background_fill_primary="*neutral_50",  # Soft's own, which `set` would take back
        color_accent="*primary_600",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_secondary_background_fill_hover_dark="*primary_600",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
    )


def _lifespan(page: gr.Blocks, hosts: AllowedHosts) -> Any:
    """Lifespan that installs `RequestGuard` as the outermost middleware at startup; Gradio would
    place it inside its own CORS middleware, which admits other origins.
    """

    @asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        limits: Limits = page.room.limits
        app.state_holder = sessions = FairStateHolder(page.room.has_conversation)
        sessions.set_blocks(page)
        everyone = os.environ.get("FORWARDED_ALLOW_IPS") == "*"
        places = open_request_capacity(limits)
        calls = CallValidator(page, limits)
        app.middleware_stack = RequestGuard(
            app.middleware_stack,
            limits,
            hosts,
            page.uploads,
            calls,
            sessions,
            trust_forwarded=everyone,
            max_open_requests=places,
        )
        watch = asyncio.create_task(
            close_idle_connections(
                lambda: getattr(page, "server", None), limits.request_timeout, places // 2
            )
        )
        try:
            yield
        finally:
            watch.cancel()

    return guarded
