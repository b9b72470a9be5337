"""The verbs that talk: ask, chat, app."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ChatError, UsageError
from .common import (
    ChatModel,
    EngineChoice,
    EngineDevice,
    Json,
    PictureTokens,
    Quantize,
    SelectedEngine,
    ServedName,
    ServerUrl,
    VerbResult,
    app,
)

if TYPE_CHECKING:
    from ..speech import Transcript
    from ..vision.image_io import OpenedImage


QuestionText = Annotated[str | None, typer.Option("--question", "-q", help="The question.")]
AskImages = Annotated[
    list[Path] | None, typer.Option(help="A picture; several are shown in this order.")
]
Sound = Annotated[Path | None, typer.Option(help="A recorded question instead of a typed one.")]
AskSpeech = Annotated[
    str | None,
    typer.Option(help="The speech part for --sound; otherwise the one of the recipe."),
]
SpokenLanguage = Annotated[
    str | None,
    typer.Option(help="What is spoken in --sound (en, de, ...); found out if not given."),
]
AnswerLength = Annotated[int, typer.Option(min=1)]
ChatImages = Annotated[
    list[Path] | None, typer.Option(help="A picture to talk about; may be repeated.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always gives the likeliest answer.")]
PageSpeech = Annotated[
    str | None,
    typer.Option(
        help="A Whisper for the voice tab: folder or hub id; otherwise the one of the recipe."
    ),
]
ExampleQuestions = Annotated[
    Path | None, typer.Option(help="Questions (JSONL) whose first pictures become examples.")
]
ExampleImages = Annotated[Path | None, typer.Option(help="The folder of the examples' pictures.")]
Host = Annotated[str, typer.Option(help="0.0.0.0 lets others in.")]
PagePort = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
ProxyNames = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "A further name under which browsers reach the page, a proxy's for example; may be"
            " repeated."
        )
    ),
]


@app.command()
def ask(
    model: ChatModel = None,
    question: QuestionText = None,
    image: AskImages = None,
    sound: Sound = None,
    speech: AskSpeech = None,
    language: SpokenLanguage = None,
    max_new_tokens: AnswerLength = 256,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    server: ServerUrl = None,
    served: ServedName = None,
    json: Json = False,
) -> VerbResult:
    """One question, one answer, for scripts. A question in --sound may be asked in any language: it
    is put into English.
    """
    from .rendering import print_as_json

    _check_question(question, sound)
    pictures = _open_images(image or [])
    opened = SelectedEngine(model, engine, device, picture_tokens, quantize, server, served)
    from ..chat import ChatSession, Sampling

    heard = None if sound is None else _transcribe(sound, speech or _speech_part(model), language)
    asked = str(question) if heard is None else heard.text
    session = ChatSession(opened.open(), Sampling(max_new_tokens))
    for name, picture in pictures:
        session.add_image(picture.image, name)
    answered = Answer(
        question=asked,
        answer="".join(session.ask(asked)).strip(),
        images=tuple(str(path) for path in image or ()),
        remarks=(*_remarks(pictures), *(heard.warnings if heard else ())),
        transcript=heard,
    )
    if json:
        print_as_json(answered)
    else:
        _print_answer(answered)
    return answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of `ask`, with remarks about its images and its recording."""

    question: str
    answer: str
    images: tuple[str, ...]
    remarks: tuple[str, ...]
    transcript: Transcript | None

    def to_dict(self) -> dict[str, object]:
        """The JSON that `ask --json` prints; `image` is the first of `images`."""
        made: dict[str, object] = {
            "question": self.question,
            "answer": self.answer,
            "image": self.images[0] if self.images else None,
            "images": list(self.images),
            "remarks": list(self.remarks),
        }
        heard = self.transcript
        if heard is None:
            return {**made, "heard": None, "language": None}
        return {
            **made,
            "heard": heard.text,
            "language": heard.language,
            "probability": heard.probability,
            "cut": heard.truncated,
        }


def _open_images(paths: Sequence[Path]) -> list[tuple[str, OpenedImage]]:
    """Each picture with its file's name."""
    from ..vision.image_io import open_image_with_notes

    return [(path.name, open_image_with_notes(path)) for path in paths]


def _remarks(pictures: Sequence[tuple[str, OpenedImage]]) -> Iterator[str]:
    """What is to be said about the pictures, of several with their names."""
    for name, picture in pictures:
        yield from (f"{name}: {note}" if len(pictures) > 1 else note for note in picture.notes)


def _check_question(question: str | None, sound: Path | None) -> None:
    if (question is None) == (sound is None):
        raise UsageError(
            "ask needs one question",
            got="both" if question is not None else "none",
            wanted="--question or --sound",
        )
    if question is not None and not question.strip():
        raise ChatError("the question is empty", do="Type something after --question")


def _transcribe(sound: Path, part: str | None, language: str | None) -> Transcript:
    from ..speech import Transcriber

    if part is None:
        raise UsageError(
            "the model names no speech part",
            do="Name one with --speech, for example --speech openai/whisper-small",
        )
    return Transcriber(part).transcribe(sound, language=language)


def _print_answer(answered: Answer) -> None:
    from .. import console

    for remark in answered.remarks:
        console.err.print(remark, style="yellow")
    if (heard := answered.transcript) is not None:
        console.err.print(f"heard, in {heard.language_description}: {heard.text}")
    console.out.print(answered.answer)


@app.command()
def chat(
    model: ChatModel = None,
    image: ChatImages = None,
    temperature: Temperature = 0.0,
    max_new_tokens: AnswerLength = 256,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    server: ServerUrl = None,
    served: ServedName = None,
) -> None:
    """Talk in the terminal; answers appear as they are made."""
    from .. import console

    pictures = _open_images(image or [])
    opened = SelectedEngine(model, engine, device, picture_tokens, quantize, server, served)
    from ..chat import ChatSession, Sampling
    from ..chat.terminal import run_terminal_chat

    session = ChatSession(opened.open(), Sampling(max_new_tokens, temperature))
    for name, picture in pictures:
        session.add_image(picture.image, name)
    for remark in _remarks(pictures):
        console.err.print(remark, style="yellow")
    run_terminal_chat(session, console.out)


@app.command("app")
def app_(
    model: ChatModel = None,
    speech: PageSpeech = None,
    examples: ExampleQuestions = None,
    images: ExampleImages = None,
    host: Host = "127.0.0.1",
    port: PagePort = 7860,
    allow_host: ProxyNames = None,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    server: ServerUrl = None,
    served: ServedName = None,
) -> None:
    """Open the page: a picture, questions by keyboard or by voice, answers as they are made."""
    if (examples is None) != (images is None):
        raise UsageError(
            "examples need both their questions and their pictures",
            wanted="--examples FILE --images DIR",
        )
    opened = SelectedEngine(model, engine, device, picture_tokens, quantize, server, served)
    from ..chat.servers import free_port

    if port:
        free_port(port, host)  # said before anything is loaded
    from ..app import build, find_examples, launch
    from ..speech import Transcriber

    found = find_examples(examples, images) if examples is not None and images is not None else []
    part = speech or _speech_part(model)
    page = build(opened.open(), Transcriber(part) if part else None, found)
    launch(page, host=host, port=port, allowed_hosts=allow_host or [])


def _speech_part(model: Path | None) -> str | None:
    """The speech part that the model's recipe named, if any."""
    from ..artifacts import MANIFEST
    from ..opening.files import load_manifest

    if model is None or not (model / MANIFEST).is_file():
        return None
    return load_manifest(model).text("speech")
