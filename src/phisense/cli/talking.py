"""The verbs that talk: ask, chat, app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ChatError, UsageError
from .common import Device, Json, PictureTokens, Quantise, Served, Server, Talker, Which, app, chosen


@app.command()
def ask(
    model: Talker = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="The question.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    sound: Annotated[Path | None, typer.Option(help="A recorded question instead of a typed one.")] = None,
    speech: Annotated[str | None, typer.Option(help="The speech part for --sound; otherwise the one of the recipe.")] = None,
    language: Annotated[str | None, typer.Option(help="What is spoken in --sound (en, de, ...); found out if not given.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    picture_tokens: PictureTokens = None,
    device: Device = "auto",
    engine: Which = "auto",
    quantise: Quantise = False,
    server: Server = None,
    served: Served = None,
    json: Json = False,
) -> dict[str, Any]:
    """One question, one answer, for scripts. A question in --sound may be asked in any language: it is put into English."""
    from .. import console
    from ..vision.pictures import open_picture

    if (question is None) == (sound is None):
        raise UsageError("ask needs one question", got="both" if question is not None else "none", wanted="--question or --sound")
    if question is not None and not question.strip():
        raise ChatError("the question is empty", do="Type something after --question")
    picture = None if image is None else open_picture(image)
    kind = chosen(model, engine, server)
    from ..chat import Sampling, Session
    from ..chat.choose import open_engine

    heard = None
    if sound is not None:
        from ..speech import Transcriber

        part = speech or _speech_part(model)
        if part is None:
            raise UsageError("the model names no speech part", do="Name one with --speech, for example --speech openai/whisper-small")
        heard = Transcriber(part).transcribe(sound, language=language)
        question = heard.text
    session = Session(
        open_engine(model, engine=kind, quantise=quantise, device=device, picture_tokens=picture_tokens, server=server, served=served),
        Sampling(max_new_tokens),
    )
    session.show(picture)
    answer = "".join(session.ask(str(question))).strip()
    result = {"question": question, "answer": answer, "image": None if image is None else str(image)}
    result |= {"heard": None, "language": None} if heard is None else {"heard": heard.text, "language": heard.language}
    if json:
        console.print_json(result)
    else:
        if heard is not None:
            console.err.print(f"heard, in {heard.spoken}: {heard.text}", markup=False)
        console.out.print(answer, markup=False)
    return result


@app.command()
def chat(
    model: Talker = None,
    image: Annotated[Path | None, typer.Option(help="The picture to talk about.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always gives the likeliest answer.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    picture_tokens: PictureTokens = None,
    device: Device = "auto",
    engine: Which = "auto",
    quantise: Quantise = False,
    server: Server = None,
    served: Served = None,
) -> None:
    """Talk in the terminal; answers appear as they are made."""
    from .. import console
    from ..vision.pictures import open_picture

    picture = None if image is None else open_picture(image)
    kind = chosen(model, engine, server)
    from ..chat import Sampling, Session
    from ..chat.choose import open_engine
    from ..chat.terminal import talk

    session = Session(
        open_engine(model, engine=kind, quantise=quantise, device=device, picture_tokens=picture_tokens, server=server, served=served),
        Sampling(max_new_tokens, temperature),
    )
    session.show(picture)
    talk(session, console.out)


@app.command("app")
def app_(
    model: Talker = None,
    speech: Annotated[
        str | None, typer.Option(help="A Whisper for the voice tab: folder or hub id; otherwise the one of the recipe.")
    ] = None,
    examples: Annotated[Path | None, typer.Option(help="Questions (JSONL) whose first pictures become examples.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the examples' pictures.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    picture_tokens: PictureTokens = None,
    device: Device = "auto",
    engine: Which = "auto",
    quantise: Quantise = False,
    server: Server = None,
    served: Served = None,
) -> None:
    """Open the page: a picture, questions by keyboard or by voice, answers as they are made."""
    if (examples is None) != (images is None):
        raise UsageError("examples need both their questions and their pictures", wanted="--examples FILE --images DIR")
    kind = chosen(model, engine, server)
    from ..chat.servers import free_port

    if port:
        free_port(port, host)  # said before anything is loaded
    from ..app import build, find_examples, launch
    from ..chat.choose import open_engine
    from ..speech import Transcriber

    found = find_examples(examples, images) if examples is not None and images is not None else []
    part = speech or _speech_part(model)
    page = build(
        open_engine(model, engine=kind, quantise=quantise, device=device, picture_tokens=picture_tokens, server=server, served=served),
        Transcriber(part) if part else None,
        found,
    )
    launch(page, host=host, port=port, allowed=[example.picture for example in found])


def _speech_part(model: Path | None) -> str | None:
    """The speech part that the model's recipe named, if any."""
    from .. import artefact

    if model is None or not (model / artefact.MANIFEST).is_file():
        return None
    about: dict[str, Any] = artefact.read_json(model / artefact.MANIFEST)["about"]
    return about.get("speech")
