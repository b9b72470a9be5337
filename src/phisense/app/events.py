"""What the components of the page do: which handler each event calls, with which values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .examples import Example
from .handlers import EventHandlers
from .layout import Widgets

# What page.js does in the browser; without it, nothing.
_DARK = "() => { document.body.classList.toggle('dark') }"
_DOWNLOAD = "(messages) => { window.phisense?.download(messages); return [] }"
_READ = "() => { window.phisense?.read() }"
_ANSWERED = "() => { window.phisense?.answered() }"
_SAVE = "(current) => { window.phisense?.save(current) }"
_KEEP = "(keep, current) => { window.phisense?.keep(keep, current) }"
_DELETE = "() => { window.phisense?.remove(); return false }"
_RETURN = "async () => (await window.phisense?.load()) ?? [false, null, '']"


def wire_events(
    page: gr.Blocks, widgets: Widgets, steps: EventHandlers, examples: Sequence[Example]
) -> None:
    """Connect all components of the page with their handlers."""
    _wire_text(widgets, steps)
    _wire_voice(widgets, steps)
    _wire_conversation(widgets, steps)
    _wire_image(widgets, steps)
    _wire_controls(widgets, steps)
    _wire_keeping(page, widgets, steps)
    page.unload(steps.close_session)
    if widgets.image.gallery is not None:
        _wire_examples(widgets.image.gallery, examples, widgets.image.picture, widgets.box.ready)


def _model(steps: EventHandlers) -> dict[str, Any]:
    """Calls of the model share places in the queue: as many as the engine answers at once."""
    return {"concurrency_limit": steps.app.engine.places, "concurrency_id": "model"}


def _answering(w: Widgets, steps: EventHandlers, box: gr.Textbox) -> dict[str, Any]:
    """What an answer changes, `box` being where the question was typed; only the conversation
    shows that something is waited for.
    """
    return {
        "outputs": [w.box.conversation, box, w.image.timing, w.keeping.current, w.visitor],
        "show_progress": "minimal",
        "show_progress_on": w.box.conversation,
        **_model(steps),
    }


def _announce(answering: Any) -> None:
    """When the answer is complete, a screen reader says it."""
    answering.then(None, None, None, js=_ANSWERED)


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
        **_answering(w, steps, w.text.question),
    }
    _announce(w.text.question.submit(**asking, api_name="ask"))
    _announce(w.text.send.click(**asking, api_name=False))
    chosen = w.box.ready.click(
        lambda sample: sample[0], w.box.ready, w.text.question, api_name=False, queue=False
    )
    _announce(chosen.then(**asking, api_name=False))


def _wire_voice(w: Widgets, steps: EventHandlers) -> None:
    """A recording is transcribed, and asked at once or when it is sent."""
    voice, sampled = w.voice, [w.settings.warmth, w.settings.tokens, w.visitor]
    answering = _answering(w, steps, voice.heard)
    hearing = gr.on(
        [voice.sound.stop_recording, voice.sound.upload],
        steps.transcribe,
        [voice.sound, voice.spoken_in],
        [voice.heard, voice.language],
        api_name="listen",
        concurrency_limit=4,
    )
    asked = hearing.then(
        steps.ask_transcript,
        [voice.heard, voice.at_once, w.image.picture, *sampled],
        **answering,
        api_name="ask_heard",
    )
    _announce(asked)
    for event in (voice.send_heard.click, voice.heard.submit):
        sent = [voice.heard, w.image.picture, *sampled]
        _announce(event(steps.ask, sent, **answering, api_name=False))


def _wire_conversation(w: Widgets, steps: EventHandlers) -> None:
    """Retry, edit and undo of what was said."""
    conversation, question = w.box.conversation, w.text.question
    answering = _answering(w, steps, question)
    changed = [w.image.picture, question, w.settings.warmth, w.settings.tokens, w.visitor]
    _announce(conversation.retry(steps.retry, changed, **answering, api_name=False))
    _announce(conversation.edit(steps.edit, changed, **answering, api_name=False))
    conversation.undo(
        steps.undo,
        w.visitor,
        [conversation, question, w.keeping.current, w.visitor],
        **_model(steps),
        show_progress="hidden",
        api_name=False,
    )


def _wire_image(w: Widgets, steps: EventHandlers) -> None:
    """Another image begins another conversation; the button shows where the answer looked."""
    w.image.picture.change(
        steps.set_image,
        [w.image.picture, w.visitor],
        [w.box.conversation, w.keeping.current, w.visitor],
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
    cleared = [conversation, w.image.timing, w.keeping.current, w.visitor]
    conversation.clear(steps.clear, w.visitor, cleared, queue=False, api_name=False)
    controls.read.click(None, None, None, js=_READ)
    controls.stop.click(steps.stop, w.visitor, None, queue=False, api_name="stop")
    controls.clear.click(steps.clear, w.visitor, cleared, queue=False, api_name="clear")
    controls.download.click(None, conversation, None, js=_DOWNLOAD)
    controls.dark.click(None, None, None, js=_DARK)


def _wire_keeping(page: gr.Blocks, w: Widgets, steps: EventHandlers) -> None:
    """What the browser keeps, of which the server is not told, and what it brings back."""
    kept = w.keeping
    kept.current.change(None, kept.current, None, js=_SAVE)
    kept.keep.input(None, [kept.keep, kept.current], None, js=_KEEP)
    kept.delete.click(None, None, kept.keep, js=_DELETE)
    page.load(None, None, [kept.keep, w.image.picture, kept.returned], js=_RETURN)
    kept.returned.change(
        steps.restore,
        [kept.returned, w.image.picture, w.visitor],
        [w.box.conversation, kept.current, w.visitor],
        **_model(steps),
        show_progress="hidden",
        api_name=False,
    )


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
