"""The Gradio page: its layout, and the event handler of each component."""

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
from ..speech.languages import LANGUAGES
from .allowed_hosts import AllowedHosts
from .examples import Example
from .fair_share import open_request_capacity
from .handlers import EventHandlers
from .idle_connections import close_idle_connections
from .limits import Limits
from .middleware import RequestGuard
from .request_validation import CallValidator
from .state import AppState
from .state_holder import FairStateHolder
from .uploads import Uploads

_CSS = """
.gradio-container { max-width: 1080px !important; margin: auto; overflow-x: hidden }
#conversation { min-height: 24rem }
#about, #timing { opacity: .75; font-size: .9rem }
/* or phones scroll sideways */
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important }
footer { display: none !important }
"""
_DARK = "() => { document.body.classList.toggle('dark') }"
_DOWNLOAD = """(messages) => {
  const parts = (content) => content.map((part) => part.text ?? '').join('');
  const said = (m) => typeof m.content === 'string' ? m.content : parts(m.content);
  const line = (m) => `**${m.role === 'user' ? 'You' : 'Model'}:** ${said(m)}`;
  const text = messages.map(line).join('\\n\\n') + '\\n';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'text/markdown'}));
  link.download = 'conversation.md';
  link.click();
  URL.revokeObjectURL(link.href);
  return [];
}"""


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
    shown = [
        Example(Path(save_file_to_cache(example.image, get_upload_folder())), example.questions)
        for example in examples
    ]
    for example in shown:
        uploads.share(str(example.image))
    steps = EventHandlers(room, uploads)
    # Gradio deletes old uploads periodically, so a deleted file may be older by one period.
    often = room.limits.retention_seconds // 6
    with gr.Blocks(
        title="phisense",
        delete_cache=(often, room.limits.retention_seconds - often),
        analytics_enabled=False,
    ) as page:
        page.room, page.uploads = room, uploads
        visitor = gr.State(
            None,
            time_to_live=room.limits.retention_seconds,
            delete_callback=lambda me: me and me.stop.set(),
        )
        gr.Markdown("# phisense\nShow a picture and ask about it, by keyboard or by voice.")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    label="Picture",
                    height=320,
                    elem_id="picture",
                )
                chosen = _example_gallery(shown)
                gr.Markdown(
                    f"{engine.name}: {engine.picture_tokens} tokens a picture, a window of"
                    f" {engine.window}",
                    elem_id="about",
                )
                timing = gr.Markdown("", elem_id="timing")
                where = gr.Button(
                    "Where it looked",
                    size="sm",
                    elem_id="where",
                    visible=engine.attention_map is not None,
                )
                looked = gr.Image(
                    label="Where the last answer looked",
                    interactive=False,
                    visible=False,
                    elem_id="looked",
                    format="png",
                    buttons=["fullscreen", "download"],
                )
            with gr.Column(scale=3, min_width=280):
                conversation = gr.Chatbot(
                    label="Conversation",
                    elem_id="conversation",
                    height=420,
                    buttons=["copy", "copy_all"],
                    sanitize_html=True,
                    allow_tags=False,
                    editable="user",
                    feedback_options=None,
                    latex_delimiters=[],
                    placeholder="Upload, paste, drop or photograph a picture, then ask.",
                )
                ready = gr.Dataset(
                    components=[gr.Textbox(visible=False)],
                    samples=[],
                    label="Ready questions",
                    visible=False,
                    elem_id="ready",
                )
                with gr.Tab("Text", id="text"), gr.Row():
                    question = gr.Textbox(
                        placeholder="Ask something; Enter sends",
                        show_label=False,
                        scale=5,
                        max_length=room.limits.max_question_length,
                        elem_id="question",
                        autofocus=True,
                    )
                    send = gr.Button(
                        "Send", variant="primary", scale=1, min_width=80, elem_id="send"
                    )
                with gr.Tab("Voice", id="voice"):
                    sound = gr.Audio(
                        type="filepath",
                        sources=["microphone", "upload"],
                        label="Say your question",
                        elem_id="sound",
                    )
                    spoken_in = gr.Dropdown(
                        [("Found out", ""), *((name, code) for code, name in LANGUAGES.items())],
                        value="",
                        label="Spoken language",
                        elem_id="spoken-in",
                        visible=transcriber is not None and transcriber.multilingual,
                    )
                    heard = gr.Textbox(
                        label="Heard",
                        elem_id="heard",
                        placeholder="What was understood appears here; change it, or send it",
                    )
                    with gr.Row():
                        at_once = gr.Checkbox(True, label="Send at once", elem_id="at-once")
                        send_heard = gr.Button("Send", elem_id="send-heard", min_width=80)
                    language = gr.Markdown(
                        (
                            ""
                            if transcriber
                            else "This page has no ears: start it with `--speech` and a Whisper."
                        ),
                        elem_id="language",
                    )
                with gr.Row():
                    stop = gr.Button("Stop", min_width=80, elem_id="stop")
                    clear = gr.Button("Clear conversation", min_width=120, elem_id="clear")
                    download = gr.Button("Download", min_width=100, elem_id="download")
                    dark = gr.Button("Dark or light", min_width=100, elem_id="dark")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    warmth = gr.Slider(
                        0,
                        1.5,
                        0,
                        step=0.1,
                        label="Temperature; 0 always gives the likeliest answer",
                        elem_id="warmth",
                    )
                    tokens = gr.Slider(
                        16,
                        room.limits.max_answer_tokens,
                        room.limits.default_answer_tokens,
                        step=16,
                        label="Longest answer, tokens",
                        elem_id="tokens",
                    )

        model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        told = [conversation, question, timing, visitor]
        asking: dict[str, Any] = {
            "fn": steps.ask,
            "inputs": [question, picture, warmth, tokens, visitor],
            "outputs": told,
            **model,
        }
        question.submit(**asking, api_name="ask")
        send.click(**asking, api_name=False)
        ready.click(lambda sample: sample[0], ready, question, api_name=False, queue=False).then(
            **asking, api_name=False
        )
        hearing = gr.on(
            [sound.stop_recording, sound.upload],
            steps.transcribe,
            [sound, spoken_in],
            [heard, language],
            api_name="listen",
            concurrency_limit=4,
        )
        spoken = {
            "inputs": [heard, at_once, picture, warmth, tokens, visitor],
            "outputs": [conversation, heard, timing, visitor],
            **model,
        }
        hearing.then(steps.ask_transcript, **spoken, api_name="ask_heard")
        heard_inputs = [heard, picture, warmth, tokens, visitor]
        for event in (send_heard.click, heard.submit):
            event(
                steps.ask,
                heard_inputs,
                [conversation, heard, timing, visitor],
                **model,
                api_name=False,
            )
        changed = [picture, question, warmth, tokens, visitor]
        conversation.retry(steps.retry, changed, told, **model, api_name=False)
        conversation.edit(steps.edit, changed, told, **model, api_name=False)
        conversation.undo(
            steps.undo, visitor, [conversation, question, visitor], **model, api_name=False
        )
        picture.change(
            steps.set_image,
            [picture, visitor],
            [conversation, visitor],
            **model,
            api_name="look",
            show_progress="hidden",
        )
        picture.change(lambda: gr.update(visible=False), None, looked, queue=False, api_name=False)
        where.click(steps.show_attention, visitor, looked, **model, api_name=False)
        # Outside the queue: these must work while an answer is being generated.
        conversation.clear(
            steps.clear, visitor, [conversation, timing, visitor], queue=False, api_name=False
        )
        stop.click(steps.stop, visitor, None, queue=False, api_name="stop")
        clear.click(
            steps.clear, visitor, [conversation, timing, visitor], queue=False, api_name="clear"
        )
        download.click(None, conversation, None, js=_DOWNLOAD)
        dark.click(None, None, None, js=_DARK)
        page.unload(steps.close_session)
        if chosen is not None:
            _wire_examples(chosen, shown, picture, ready)
    _pass_paths_only(picture, sound)
    return page


def _pass_paths_only(*media: Any) -> None:
    """Skip Gradio's preprocessing: it would decode images before any limit applies, convert audio,
    and write the content of `data:` URLs.
    """
    for component in media:
        component.preprocess = lambda payload: None if payload is None else payload.path


def _example_gallery(examples: Sequence[Example]) -> gr.Gallery | None:
    if not examples:
        return None
    return gr.Gallery(
        [str(example.image) for example in examples],
        label="Examples",
        columns=3,
        rows=2,
        height=220,
        allow_preview=False,
        interactive=False,
        elem_id="examples",
    )


def _wire_examples(
    gallery: gr.Gallery, examples: Sequence[Example], picture: gr.Image, ready: gr.Dataset
) -> None:
    def choose(event: gr.SelectData) -> tuple[str, gr.Dataset]:
        example = examples[min(int(event.index), len(examples) - 1)]
        return str(example.image), gr.Dataset(
            samples=[[text] for text in example.questions], visible=True
        )

    gallery.select(choose, None, [picture, ready], api_name=False, queue=False)


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
        theme=gr.themes.Soft(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),  # system fonts: nothing is downloaded
        css=_CSS,
        app_kwargs={"lifespan": _lifespan(page, names)},
    )
    if page.share_url:
        names.allow(page.share_url)
    if block:
        page.block_thread()
    return told


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
