"""The verbs that talk: ask, chat, app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ChatError, UsageError
from .common import (
    ChatModel,
    EngineChoice,
    EngineDevice,
    Json,
    PictureTokens,
    Quantize,
    ServedName,
    ServerUrl,
    app,
    select_engine,
)


@app.command()
def ask(
    model: ChatModel = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="The question.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    sound: Annotated[
        Path | None, typer.Option(help="A recorded question instead of a typed one.")
    ] = None,
    speech: Annotated[
        str | None,
        typer.Option(help="The speech part for --sound; otherwise the one of the recipe."),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="What is spoken in --sound (en, de, ...); found out if not given."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    server: ServerUrl = None,
    served: ServedName = None,
    json: Json = False,
) -> dict[str, Any]:
    """One question, one answer, for scripts. A question in --sound may be asked in any language: it
    is put into English.
    """
    from .. import console
    from ..vision.image_io import open_image_with_notes

    if (question is None) == (sound is None):
        raise UsageError(
            "ask needs one question",
            got="both" if question is not None else "none",
            wanted="--question or --sound",
        )
    if question is not None and not question.strip():
        raise ChatError("the question is empty", do="Type something after --question")
    picture = None if image is None else open_image_with_notes(image)
    kind = select_engine(model, engine, server)
    from ..chat import ChatSession, Sampling
    from ..chat.open_engine import open_engine

    heard = None
    if sound is not None:
        from ..speech import Transcriber

        part = speech or _speech_part(model)
        if part is None:
            raise UsageError(
                "the model names no speech part",
                do="Name one with --speech, for example --speech openai/whisper-small",
            )
        heard = Transcriber(part).transcribe(sound, language=language)
        question = heard.text
    session = ChatSession(
        open_engine(
            model,
            engine=kind,
            quantize=quantize,
            device=device,
            picture_tokens=picture_tokens,
            server=server,
            served_model=served,
        ),
        Sampling(max_new_tokens),
    )
    session.set_image(picture.image if picture else None)
    answer = "".join(session.ask(str(question))).strip()
    remarks = [*(picture.notes if picture else []), *(heard.warnings if heard else [])]
    result: dict[str, Any] = {
        "question": question,
        "answer": answer,
        "image": None if image is None else str(image),
        "remarks": remarks,
    }
    if heard is None:
        result |= {"heard": None, "language": None}
    else:
        result |= {
            "heard": heard.text,
            "language": heard.language,
            "probability": heard.probability,
            "cut": heard.truncated,
        }
    if json:
        console.print_json(result)
    else:
        for remark in remarks:
            console.err.print(remark, style="yellow")
        if heard is not None:
            console.err.print(f"heard, in {heard.language_description}: {heard.text}")
        console.out.print(answer)
    return result


@app.command()
def chat(
    model: ChatModel = None,
    image: Annotated[Path | None, typer.Option(help="The picture to talk about.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always gives the likeliest answer.")
    ] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    picture_tokens: PictureTokens = None,
    device: EngineDevice = "auto",
    engine: EngineChoice = "auto",
    quantize: Quantize = False,
    server: ServerUrl = None,
    served: ServedName = None,
) -> None:
    """Talk in the terminal; answers appear as they are made."""
    from .. import console
    from ..vision.image_io import open_image_with_notes

    picture = None if image is None else open_image_with_notes(image)
    kind = select_engine(model, engine, server)
    from ..chat import ChatSession, Sampling
    from ..chat.open_engine import open_engine
    from ..chat.terminal import run_terminal_chat

    session = ChatSession(
        open_engine(
            model,
            engine=kind,
            quantize=quantize,
            device=device,
            picture_tokens=picture_tokens,
            server=server,
            served_model=served,
        ),
        Sampling(max_new_tokens, temperature),
    )
    session.set_image(picture.image if picture else None)
    for remark in picture.notes if picture else []:
        console.err.print(remark, style="yellow")
    run_terminal_chat(session, console.out)


@app.command("app")
def app_(
    model: ChatModel = None,
    speech: Annotated[
        str | None,
        typer.Option(
            help="A Whisper for the voice tab: folder or hub id; otherwise the one of the recipe."
        ),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Questions (JSONL) whose first pictures become examples.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder of the examples' pictures.")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "A further name under which browsers reach the page, a proxy's for example; may be"
                " repeated."
            )
        ),
    ] = None,
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
    kind = select_engine(model, engine, server)
    from ..chat.servers import free_port

    if port:
        free_port(port, host)  # said before anything is loaded
    from ..app import build, find_examples, launch
    from ..chat.open_engine import open_engine
    from ..speech import Transcriber

    found = find_examples(examples, images) if examples is not None and images is not None else []
    part = speech or _speech_part(model)
    page = build(
        open_engine(
            model,
            engine=kind,
            quantize=quantize,
            device=device,
            picture_tokens=picture_tokens,
            server=server,
            served_model=served,
        ),
        Transcriber(part) if part else None,
        found,
    )
    launch(page, host=host, port=port, allowed_hosts=allow_host or [])


def _speech_part(model: Path | None) -> str | None:
    """The speech part that the model's recipe named, if any."""
    from ..artifacts import MANIFEST
    from ..opening.files import load_manifest

    if model is None or not (model / MANIFEST).is_file():
        return None
    speech = load_manifest(model)["about"].get("speech")
    return speech if isinstance(speech, str) else None
