"""The page itself: what stands where, and which step of `talk` each button takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..chat import Engine
from ..errors import PhisenseError
from ..speech import Transcriber
from .examples import Example
from .talk import Said, Visitor, transcribe

MOST_UPLOAD = "32mb"
WAITING = 16  # people in the queue
HOUR = 3600  # seconds; uploads and idle visitors are forgotten after it

_CSS = """
.gradio-container { max-width: 1080px !important; margin: auto; overflow-x: hidden }
#conversation { min-height: 24rem }
#about { opacity: .75; font-size: .9rem }
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important } /* or phones scroll sideways */
footer { display: none !important }
"""

Messages = list[dict[str, Any]]


def build(engine: Engine, ears: Transcriber | None = None, examples: Sequence[Example] = ()) -> gr.Blocks:  # noqa: C901, a page is one place
    """The page over one engine; without `ears` the voice tab says how to get them."""
    with gr.Blocks(title="phisense", delete_cache=(HOUR, HOUR)) as page:
        visitor = gr.State(None, time_to_live=HOUR)
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
                # Gradio would open the file itself, before any bound of ours; `open_picture` is the only one that does.
                picture.preprocess = _path_only
                chosen = _example_gallery(examples)
                gr.Markdown(f"{engine.name}: {engine.picture_tokens} tokens a picture, a window of {engine.window}", elem_id="about")
            with gr.Column(scale=3, min_width=280):
                conversation = gr.Chatbot(
                    label="Conversation", elem_id="conversation", height=420, buttons=["copy", "copy_all"], sanitize_html=True
                )
                ready = gr.Dataset(
                    components=[gr.Textbox(visible=False)], samples=[], label="Ready questions", visible=False, elem_id="ready"
                )
                with gr.Tab("Text", id="text"), gr.Row():
                    question = gr.Textbox(
                        placeholder="Ask something; Enter sends",
                        show_label=False,
                        scale=5,
                        max_length=2000,
                        elem_id="question",
                        autofocus=True,
                    )
                    send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
                with gr.Tab("Voice", id="voice"):
                    sound = gr.Audio(type="filepath", sources=["microphone", "upload"], label="Say your question", elem_id="sound")
                    heard = gr.Textbox(
                        label="Heard",
                        interactive=False,
                        elem_id="heard",
                        placeholder="What was understood appears here and is asked at once",
                    )
                    if ears is None:
                        gr.Markdown("This page has no ears: start it with `--speech` and a Whisper.")
                with gr.Row():
                    stop = gr.Button("Stop", min_width=80, elem_id="stop")
                    clear = gr.Button("Clear conversation", min_width=120, elem_id="clear")

        def ask(text: str, path: str | None, state: Visitor | None, shown: Messages) -> Iterator[tuple[Messages, str, Visitor]]:
            """Streams the conversation; the box is emptied once the question has been taken."""
            me = state or Visitor(engine)
            try:
                for lines in me.ask(text or "", Path(path) if path else None):
                    yield _messages(lines), "", me
            except PhisenseError as error:
                gr.Warning(str(error))
                yield shown, text, me

        def listen(path: str | None) -> str:
            try:
                return transcribe(ears, Path(path) if path else None)
            except PhisenseError as error:
                gr.Warning(str(error))
                return ""

        def ask_heard(text: str, path: str | None, state: Visitor | None, shown: Messages) -> Iterator[tuple[Messages, Visitor]]:
            if not text:
                yield shown, state or Visitor(engine)
                return
            for messages, _, me in ask(text, path, state, shown):
                yield messages, me

        def look(path: str | None, state: Visitor | None, shown: Messages) -> tuple[Messages, Visitor]:
            """A picture was put there or taken away; it is encoded while the visitor types."""
            me = state or Visitor(engine)
            if path is not None and Path(path) == me.refused:  # said already; the browser reports a change twice
                return shown, me
            try:
                me.look(Path(path) if path else None)
            except PhisenseError as error:
                gr.Warning(str(error))
                return shown, me
            return (shown if me.session.turns else []), me

        def halt(state: Visitor | None) -> None:
            if state is not None:
                state.stop.set()

        def forget(state: Visitor | None) -> tuple[Messages, Visitor]:
            me = state or Visitor(engine)
            me.clear()
            return [], me

        inputs = [question, picture, visitor, conversation]
        asking = {
            "fn": ask,
            "inputs": inputs,
            "outputs": [conversation, question, visitor],
            "concurrency_limit": 1,
            "concurrency_id": "model",
        }
        question.submit(**asking, api_name="ask")
        send.click(**asking, api_name=False)
        ready.click(lambda sample: sample[0], ready, question, api_name=False, queue=False).then(**asking, api_name=False)
        heard_it = gr.on([sound.stop_recording, sound.upload], listen, sound, heard, api_name="listen", concurrency_limit=1)
        heard_it.then(
            ask_heard,
            [heard, picture, visitor, conversation],
            [conversation, visitor],
            api_name="ask_heard",
            concurrency_limit=1,
            concurrency_id="model",
        )
        picture.change(
            look,
            [picture, visitor, conversation],
            [conversation, visitor],
            api_name="look",
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="hidden",
        )
        # Beside the queue: they must work while an answer is being made.
        conversation.clear(forget, visitor, [conversation, visitor], queue=False, api_name=False)
        stop.click(halt, visitor, None, queue=False, api_name="stop")
        clear.click(forget, visitor, [conversation, visitor], queue=False, api_name="clear")
        if chosen is not None:
            _wire_examples(chosen, examples, picture, ready)
    return page


def _path_only(payload: Any) -> str | None:
    return None if payload is None else payload.path


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


def _messages(lines: Sequence[Said]) -> Messages:
    """Gradio's message format; a notice is a line of the assistant's in italics, and no turn of the model."""
    return [
        {"role": "user" if line.who == "user" else "assistant", "content": f"*{line.text}*" if line.who == "notice" else line.text}
        for line in lines
    ]


def launch(page: gr.Blocks, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True, allowed: Sequence[Path] = ()) -> Any:
    """Serves the page with bounded uploads and a bounded queue. `port` 0 takes a free one."""
    page.queue(max_size=WAITING, default_concurrency_limit=2)
    return page.launch(
        server_name=host,
        server_port=port or None,
        max_file_size=MOST_UPLOAD,
        prevent_thread_lock=not block,
        show_error=False,
        enable_monitoring=False,
        theme=gr.themes.Soft(),
        css=_CSS,
        allowed_paths=[str(path.resolve()) for path in allowed],
    )
