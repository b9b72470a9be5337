"""The page itself: what stands where, and which step each button takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.middleware import Middleware

from ..chat import Engine
from ..errors import UsageError
from ..speech import Transcriber
from .door import Door
from .examples import Example
from .limits import Limits
from .steps import Steps
from .talk import Room

_CSS = """
.gradio-container { max-width: 1080px !important; margin: auto; overflow-x: hidden }
#conversation { min-height: 24rem }
#about, #timing { opacity: .75; font-size: .9rem }
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important } /* or phones scroll sideways */
footer { display: none !important }
"""
_DARK = "() => { document.body.classList.toggle('dark') }"
_DOWNLOAD = """(messages) => {
  const said = (m) => typeof m.content === 'string' ? m.content : m.content.map((part) => part.text ?? '').join('');
  const text = messages.map((m) => `**${m.role === 'user' ? 'You' : 'Model'}:** ${said(m)}`).join('\\n\\n') + '\\n';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'text/markdown'}));
  link.download = 'conversation.md';
  link.click();
  URL.revokeObjectURL(link.href);
  return [];
}"""


def build(engine: Engine, ears: Transcriber | None = None, examples: Sequence[Example] = (), limits: Limits | None = None) -> gr.Blocks:
    """The page over one engine; without `ears` the voice tab says how to get them. `room` of the page is what its visitors share."""
    room = Room(engine, ears, limits or Limits())
    steps = Steps(room)
    # Gradio looks for old uploads every so often, so what is deleted may be older by that.
    often = room.limits.hour // 6
    with gr.Blocks(title="phisense", delete_cache=(often, room.limits.hour - often), analytics_enabled=False) as page:
        page.room = room
        visitor = gr.State(None, time_to_live=room.limits.hour, delete_callback=lambda me: me and me.stop.set())
        gr.Markdown("# phisense\nShow a picture and ask about it, by keyboard or by voice.")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"], label="Picture", height=320,
                    elem_id="picture",
                )  # fmt: skip
                chosen = _example_gallery(examples)
                gr.Markdown(f"{engine.name}: {engine.picture_tokens} tokens a picture, a window of {engine.window}", elem_id="about")
                timing = gr.Markdown("", elem_id="timing")
                where = gr.Button("Where it looked", size="sm", elem_id="where", visible=hasattr(engine, "gaze"))
                looked = gr.Image(
                    label="Where the last answer looked", interactive=False, visible=False, elem_id="looked", format="png",
                    buttons=["fullscreen", "download"],
                )  # fmt: skip
            with gr.Column(scale=3, min_width=280):
                conversation = gr.Chatbot(
                    label="Conversation", elem_id="conversation", height=420, buttons=["copy", "copy_all"], sanitize_html=True,
                    allow_tags=False, editable="user", feedback_options=None, latex_delimiters=[],
                    placeholder="Upload, paste, drop or photograph a picture, then ask.",
                )  # fmt: skip
                ready = gr.Dataset(
                    components=[gr.Textbox(visible=False)], samples=[], label="Ready questions", visible=False, elem_id="ready"
                )
                with gr.Tab("Text", id="text"), gr.Row():
                    question = gr.Textbox(
                        placeholder="Ask something; Enter sends", show_label=False, scale=5, max_length=room.limits.question,
                        elem_id="question", autofocus=True,
                    )  # fmt: skip
                    send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
                with gr.Tab("Voice", id="voice"):
                    sound = gr.Audio(
                        type="filepath", sources=["microphone", "upload"], label="Say your question", elem_id="sound",
                    )  # fmt: skip
                    heard = gr.Textbox(
                        label="Heard", elem_id="heard", placeholder="What was understood appears here; change it, or send it"
                    )
                    with gr.Row():
                        at_once = gr.Checkbox(True, label="Send at once", elem_id="at-once")
                        send_heard = gr.Button("Send", elem_id="send-heard", min_width=80)
                    language = gr.Markdown(
                        "" if ears else "This page has no ears: start it with `--speech` and a Whisper.", elem_id="language"
                    )
                with gr.Row():
                    stop = gr.Button("Stop", min_width=80, elem_id="stop")
                    clear = gr.Button("Clear conversation", min_width=120, elem_id="clear")
                    download = gr.Button("Download", min_width=100, elem_id="download")
                    dark = gr.Button("Dark or light", min_width=100, elem_id="dark")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    warmth = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature; 0 always gives the likeliest answer", elem_id="warmth")
                    tokens = gr.Slider(
                        16, room.limits.longest_answer, room.limits.answer, step=16, label="Longest answer, tokens", elem_id="tokens"
                    )

        model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        told = [conversation, question, timing, visitor]
        asking: dict[str, Any] = {"fn": steps.ask, "inputs": [question, picture, warmth, tokens, visitor], "outputs": told, **model}
        question.submit(**asking, api_name="ask")
        send.click(**asking, api_name=False)
        ready.click(lambda sample: sample[0], ready, question, api_name=False, queue=False).then(**asking, api_name=False)
        hearing = gr.on(
            [sound.stop_recording, sound.upload], steps.listen, sound, [heard, language], api_name="listen", concurrency_limit=4
        )
        spoken = {"inputs": [heard, at_once, picture, warmth, tokens, visitor], "outputs": [conversation, heard, timing, visitor], **model}
        hearing.then(steps.ask_heard, **spoken, api_name="ask_heard")
        heard_inputs = [heard, picture, warmth, tokens, visitor]
        for event in (send_heard.click, heard.submit):
            event(steps.ask, heard_inputs, [conversation, heard, timing, visitor], **model, api_name=False)
        changed = [picture, question, warmth, tokens, visitor]
        conversation.retry(steps.retry, changed, told, **model, api_name=False)
        conversation.edit(steps.edit, changed, told, **model, api_name=False)
        conversation.undo(steps.undo, visitor, [conversation, question, visitor], **model, api_name=False)
        picture.change(steps.look, [picture, visitor], [conversation, visitor], **model, api_name="look", show_progress="hidden")
        picture.change(lambda: gr.update(visible=False), None, looked, queue=False, api_name=False)
        where.click(steps.where, visitor, looked, **model, api_name=False)
        # Beside the queue: they must work while an answer is being made.
        conversation.clear(steps.clear, visitor, [conversation, timing, visitor], queue=False, api_name=False)
        stop.click(steps.halt, visitor, None, queue=False, api_name="stop")
        clear.click(steps.clear, visitor, [conversation, timing, visitor], queue=False, api_name="clear")
        download.click(None, conversation, None, js=_DOWNLOAD)
        dark.click(None, None, None, js=_DARK)
        page.unload(steps.leave)
        if chosen is not None:
            _wire_examples(chosen, examples, picture, ready)
    _only_uploads(page, picture, sound)
    return page


def _only_uploads(page: gr.Blocks, *media: Any) -> None:
    """Gradio would decode a picture before any bound of ours, convert a sound, and fetch what is named by an address, for any component."""

    def path_only(payload: Any) -> str | None:
        return None if payload is None else payload.path

    def guarded(keep: Any) -> Any:
        async def move(url_or_file_path: str | Path | None) -> str | None:
            if url_or_file_path is not None and not Path(url_or_file_path).is_file():
                raise UsageError("only uploaded files are read")
            moved: str | None = await keep(url_or_file_path)
            return moved

        return move

    for component in media:
        component.preprocess = path_only
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = guarded(block.async_move_resource_to_block_cache)


def _example_gallery(examples: Sequence[Example]) -> gr.Gallery | None:
    if not examples:
        return None
    return gr.Gallery(
        [str(example.picture.resolve()) for example in examples],
        label="Examples",
        columns=3,
        rows=2,
        height=220,
        allow_preview=False,
        interactive=False,
        elem_id="examples",
    )


def _wire_examples(gallery: gr.Gallery, examples: Sequence[Example], picture: gr.Image, ready: gr.Dataset) -> None:
    def choose(event: gr.SelectData) -> tuple[str, gr.Dataset]:
        example = examples[int(event.index)]
        return str(example.picture.resolve()), gr.Dataset(samples=[[text] for text in example.questions], visible=True)

    gallery.select(choose, None, [picture, ready], api_name=False, queue=False)


def launch(page: gr.Blocks, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True, allowed: Sequence[Path] = ()) -> Any:
    """Serves the page with bounded uploads and a bounded queue. `port` 0 takes a free one."""
    limits: Limits = page.room.limits
    page.queue(max_size=limits.waiting, default_concurrency_limit=2, api_open=False)  # nothing goes past the queue
    return page.launch(
        server_name=host,
        server_port=port or None,
        max_file_size=limits.upload,
        state_session_capacity=limits.visitors,
        prevent_thread_lock=not block,
        show_error=False,
        enable_monitoring=False,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),  # none is fetched
        css=_CSS,
        allowed_paths=[str(path.resolve()) for path in allowed],
        app_kwargs={"middleware": [Middleware(Door, limits=limits)]},
    )
