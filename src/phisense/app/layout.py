"""The components of the page, by region: the image on the left; the conversation, the two ways of
asking, the buttons and the settings on the right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from ..speech.languages import LANGUAGES
from .examples import Example
from .limits import Limits
from .state import AppState


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The image, examples of others (None if there are none), and where the last answer looked."""

    picture: gr.Image
    gallery: gr.Gallery | None
    timing: gr.Markdown
    where: gr.Button
    looked: gr.Image


@dataclass(frozen=True, slots=True)
class ConversationBox:
    """The conversation, and the questions of the chosen example."""

    conversation: gr.Chatbot
    ready: gr.Dataset


@dataclass(frozen=True, slots=True)
class TextTab:
    """A question by keyboard."""

    question: gr.Textbox
    send: gr.Button


@dataclass(frozen=True, slots=True)
class VoiceTab:
    """A question by voice: the recording, its language, and what was heard."""

    sound: gr.Audio
    spoken_in: gr.Dropdown
    heard: gr.Textbox
    at_once: gr.Checkbox
    send_heard: gr.Button
    language: gr.Markdown


@dataclass(frozen=True, slots=True)
class Controls:
    """The buttons below the conversation."""

    stop: gr.Button
    read: gr.Button
    clear: gr.Button
    download: gr.Button
    dark: gr.Button


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are sampled: temperature and maximum length."""

    warmth: gr.Slider
    tokens: gr.Slider


@dataclass(frozen=True, slots=True)
class Keeping:
    """The conversation in the visitor's own browser: whether it is kept, and its deletion. Hidden:
    what there is to keep (`current`), and what the browser brings back (`returned`).
    """

    keep: gr.Checkbox
    delete: gr.Button
    current: gr.Textbox
    returned: gr.Textbox


@dataclass(frozen=True, slots=True)
class Widgets:
    """All components that events read or change; `visitor` is the session's state."""

    visitor: gr.State
    image: ImageColumn
    box: ConversationBox
    text: TextTab
    voice: VoiceTab
    controls: Controls
    settings: Settings
    keeping: Keeping


def lay_out(room: AppState, examples: Sequence[Example]) -> Widgets:
    """Create the components, inside of a page."""
    visitor = gr.State(
        None,
        time_to_live=room.limits.retention_seconds,
        delete_callback=lambda me: me and me.stop.set(),
    )
    gr.Markdown("# phisense\nShow a picture and ask about it, by keyboard or by voice.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = _image_column(room, examples)
        with gr.Column(scale=3, min_width=280):
            return Widgets(
                visitor,
                image,
                _conversation_box(),
                _text_tab(room.limits),
                _voice_tab(room),
                _controls(),
                *_settings(room.limits),
            )


def _image_column(room: AppState, examples: Sequence[Example]) -> ImageColumn:
    engine = room.engine
    picture = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        label="Picture",
        height=320,
        elem_id="picture",
    )
    gallery = _example_gallery(examples)
    gr.Markdown(
        f"{engine.name}: {engine.picture_tokens} tokens a picture, a window of {engine.window}",
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
        label="Where it looked",
        interactive=False,
        visible=False,
        elem_id="looked",
        format="png",
        buttons=["fullscreen", "download"],
    )
    return ImageColumn(picture, gallery, timing, where, looked)


def _example_gallery(examples: Sequence[Example]) -> gr.Gallery | None:
    if not examples:
        return None
    return gr.Gallery(
        [str(example.image) for example in examples],
        label="Examples",
        columns=3,
        rows=math.ceil(len(examples) / 3),
        allow_preview=False,
        interactive=False,
        elem_id="examples",
    )


def _conversation_box() -> ConversationBox:
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
    return ConversationBox(conversation, ready)


def _text_tab(limits: Limits) -> TextTab:
    with gr.Tab("Text", id="text"), gr.Row():
        question = gr.Textbox(
            placeholder="Ask something; Enter sends",
            label="Question",
            show_label=False,
            scale=5,
            max_length=limits.max_question_length,
            elem_id="question",
            autofocus=True,
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
    return TextTab(question, send)


def _voice_tab(room: AppState) -> VoiceTab:
    transcriber = room.transcriber
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
        off = "This page has no ears: start it with `--speech` and a Whisper."
        language = gr.Markdown("" if transcriber else off, elem_id="language")
    return VoiceTab(sound, spoken_in, heard, at_once, send_heard, language)


def _controls() -> Controls:
    with gr.Row():
        return Controls(
            stop=gr.Button("Stop", size="md", min_width=70, elem_id="stop"),
            read=gr.Button("Read aloud", size="md", min_width=100, elem_id="read"),
            clear=gr.Button("Clear", size="md", min_width=70, elem_id="clear"),
            download=gr.Button("Download", size="md", min_width=100, elem_id="download"),
            dark=gr.Button("Dark or light", size="md", min_width=120, elem_id="dark"),
        )


def _settings(limits: Limits) -> tuple[Settings, Keeping]:
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
            limits.max_answer_tokens,
            limits.default_answer_tokens,
            step=16,
            label="Longest answer, tokens",
            elem_id="tokens",
        )
        keep = gr.Checkbox(
            False,
            label="Keep the conversation in this browser",
            info="Words and a small copy of the picture, on this device alone. They come back when"
            " the page is reloaded. Switched off, they are deleted.",
            elem_id="keep",
        )
        delete = gr.Button("Delete what is kept", size="md", elem_id="delete")
    # "hidden" keeps them on the page, where a change of them is an event
    current = gr.Textbox(visible="hidden", label="What a browser may keep", elem_id="current")
    returned = gr.Textbox(visible="hidden", label="What the browser kept", elem_id="returned")
    return Settings(warmth, tokens), Keeping(keep, delete, current, returned)
