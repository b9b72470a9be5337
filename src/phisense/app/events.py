"""What the components of the page do: which handler each event calls, with which values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .examples import Example
from .handlers import EventHandlers
from .layout import Widgets

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


def wire_events(
    page: gr.Blocks, widgets: Widgets, steps: EventHandlers, examples: Sequence[Example]
) -> None:
    """Connect all components of the page with their handlers."""
    _wire_text(widgets, steps)
    _wire_voice(widgets, steps)
    _wire_conversation(widgets, steps)
    _wire_image(widgets, steps)
    _wire_controls(widgets, steps)
    page.unload(steps.close_session)
    if widgets.image.gallery is not None:
        _wire_examples(widgets.image.gallery, examples, widgets.image.picture, widgets.box.ready)


def _model(steps: EventHandlers) -> dict[str, Any]:
    """Calls of the model share places in the queue: as many as the engine answers at once."""
    return {"concurrency_limit": steps.app.engine.places, "concurrency_id": "model"}


def _wire_text(w: Widgets, steps: EventHandlers) -> None:
    """Enter, the button, and a ready question ask the model."""
    asking: dict[str, Any] = {
        "fn": steps.ask,
        "inputs": [
            w.text.question,
            w.image.picture,
            w.settings.warmth,
            w.settings.tokens,
            w.visitor,
        ],
        "outputs": [w.box.conversation, w.text.question, w.image.timing, w.visitor],
        **_model(steps),
    }
    w.text.question.submit(**asking, api_name="ask")
    w.text.send.click(**asking, api_name=False)
    w.box.ready.click(
        lambda sample: sample[0], w.box.ready, w.text.question, api_name=False, queue=False
    ).then(**asking, api_name=False)


def _wire_voice(w: Widgets, steps: EventHandlers) -> None:
    """A recording is transcribed, and asked at once or when it is sent."""
    voice, sampled = w.voice, [w.settings.warmth, w.settings.tokens, w.visitor]
    told = [w.box.conversation, voice.heard, w.image.timing, w.visitor]
    hearing = gr.on(
        [voice.sound.stop_recording, voice.sound.upload],
        steps.transcribe,
        [voice.sound, voice.spoken_in],
        [voice.heard, voice.language],
        api_name="listen",
        concurrency_limit=4,
    )
    hearing.then(
        steps.ask_transcript,
        [voice.heard, voice.at_once, w.image.picture, *sampled],
        told,
        **_model(steps),
        api_name="ask_heard",
    )
    for event in (voice.send_heard.click, voice.heard.submit):
        event(
            steps.ask,
            [voice.heard, w.image.picture, *sampled],
            told,
            **_model(steps),
            api_name=False,
        )


def _wire_conversation(w: Widgets, steps: EventHandlers) -> None:
    """Retry, edit and undo of what was said."""
    conversation, question = w.box.conversation, w.text.question
    told = [conversation, question, w.image.timing, w.visitor]
    changed = [w.image.picture, question, w.settings.warmth, w.settings.tokens, w.visitor]
    conversation.retry(steps.retry, changed, told, **_model(steps), api_name=False)
    conversation.edit(steps.edit, changed, told, **_model(steps), api_name=False)
    conversation.undo(
        steps.undo, w.visitor, [conversation, question, w.visitor], **_model(steps), api_name=False
    )


def _wire_image(w: Widgets, steps: EventHandlers) -> None:
    """Another image begins another conversation; the button shows where the answer looked."""
    w.image.picture.change(
        steps.set_image,
        [w.image.picture, w.visitor],
        [w.box.conversation, w.visitor],
        **_model(steps),
        api_name="look",
        show_progress="hidden",
    )
    w.image.picture.change(
        lambda: gr.update(visible=False), None, w.image.looked, queue=False, api_name=False
    )
    w.image.where.click(
        steps.show_attention, w.visitor, w.image.looked, **_model(steps), api_name=False
    )


def _wire_controls(w: Widgets, steps: EventHandlers) -> None:
    """Outside of the queue: these must work while an answer is being generated."""
    conversation, controls = w.box.conversation, w.controls
    cleared = [conversation, w.image.timing, w.visitor]
    conversation.clear(steps.clear, w.visitor, cleared, queue=False, api_name=False)
    controls.stop.click(steps.stop, w.visitor, None, queue=False, api_name="stop")
    controls.clear.click(steps.clear, w.visitor, cleared, queue=False, api_name="clear")
    controls.download.click(None, conversation, None, js=_DOWNLOAD)
    controls.dark.click(None, None, None, js=_DARK)


def _wire_examples(
    gallery: gr.Gallery, examples: Sequence[Example], picture: gr.Image, ready: gr.Dataset
) -> None:
    """An example shows its image and its questions."""

    def choose(event: gr.SelectData) -> tuple[str, gr.Dataset]:
        example = examples[min(int(event.index), len(examples) - 1)]
        return str(example.image), gr.Dataset(
            samples=[[text] for text in example.questions], visible=True
        )

    gallery.select(choose, None, [picture, ready], api_name=False, queue=False)
