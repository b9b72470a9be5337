"""The verb that serves a model to other programs: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import app


@app.command()
def serve(
    model: Annotated[
        Path,
        typer.Argument(
            help=(
                "A model folder, as phisense merge writes it, or a GGUF folder, as phisense export"
                " does."
            )
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On loopback; 0 takes a free one.")
    ] = 8000,
    engine: Annotated[
        str,
        typer.Option(help="auto, vllm (needs a GPU), transformers, or llama (for a GGUF folder)."),
    ] = "auto",
) -> None:
    """Start the best server that is installed, speaking OpenAI's protocol on this machine alone,
    and stay until it ends.

    What it says goes to the standard error; the first line of the standard output is its address,
    printed once it has answered a question about a picture under the folder's name, which is the
    model's. Talk to it with `phisense chat --server URL`, or any client of OpenAI's. To let others
    in, put a proxy in front that knows whom.
    """
    from contextlib import ExitStack

    from .. import console
    from ..chat.server_process import run_server
    from ..chat.servers import choose_server

    chosen = choose_server(model, engine, port)
    with ExitStack() as while_starting:
        bar = while_starting.enter_context(console.progress_bars())
        bar(f"starting {chosen.label}", 0, None)

        def ready() -> None:
            bar(f"starting {chosen.label}", 1, 1)
            while_starting.close()  # from now on the standard error is the server's
            console.out.print(
                f"{chosen.url}  {chosen.label}, serving {chosen.model_name}; Ctrl-C ends it",
                soft_wrap=True,
            )
            if not chosen.has_vision:
                console.out.print(
                    "It reads text only: llama.cpp has no name for this model's projector."
                )
            console.out.file.flush()

        code = run_server(
            chosen, ready, lambda seconds: bar(f"starting {chosen.label}", seconds, None)
        )
    raise typer.Exit(code)
