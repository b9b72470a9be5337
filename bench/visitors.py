"""Several visitors at once beside one alone, with the torch engine and with llama.cpp.

    python bench/visitors.py demo/models/practice --images demo/data/images [--export FOLDER]
    python bench/visitors.py real/models/photographs --images photographs/images --answer 48

One visitor alone and `--visitors` at once, alternating, `--rounds` times, each with an image of his
own: tokens a second of all together, seconds until the first word (of the last visitor to get one),
and whether each answer is the one that the visitor got alone. Every answer has `--answer` tokens:
the end is not sampled. `--export` is a folder of `phisense export`. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phisense.chat import ChatSession, Sampling
from phisense.chat.open_engine import open_engine
from phisense.vision.image_io import open_image


@dataclass
class Visit:
    """One answer: its text, tokens, and seconds until its first piece and its end."""

    text: str
    tokens: int
    first: float
    seconds: float


def visit(engine: Any, encoded: Any, question: str, tokens: int) -> Visit:
    session = ChatSession(engine, Sampling(tokens))
    session.set_encoded_image(encoded)
    begun = time.perf_counter()
    first, pieces = 0.0, []
    for piece in session.ask(question):
        first = first or time.perf_counter() - begun
        pieces.append(piece)
    return Visit("".join(pieces), tokens, first, time.perf_counter() - begun)


def at_once(
    engine: Any, images: list[Any], question: str, tokens: int
) -> tuple[list[Visit], float]:
    found: list[Any] = [None] * len(images)

    def run(place: int) -> None:
        found[place] = visit(engine, images[place], question, tokens)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(images))]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, time.perf_counter() - begun


def measure(
    engine: Any, images: list[Any], question: str, tokens: int, rounds: int
) -> dict[str, Any]:
    """Medians and ranges of the ratios of each round."""
    alone_answers = [visit(engine, one, question, tokens).text for one in images]  # warms up, too
    at_once(engine, images, question, tokens)
    faster, alone_rates, rates, firsts, alone_firsts, same = [], [], [], [], [], []
    for number in range(rounds):
        alone = visit(engine, images[number % len(images)], question, tokens)
        together, seconds = at_once(engine, images, question, tokens)
        alone_rates.append(alone.tokens / alone.seconds)
        rates.append(sum(one.tokens for one in together) / seconds)
        faster.append(rates[-1] / alone_rates[-1])
        firsts.append(max(one.first for one in together) / alone.first)
        alone_firsts.append(alone.first)
        same += [one.text == text for one, text in zip(together, alone_answers, strict=True)]
    return {
        "ratio": statistics.median(faster),
        "ratio_range": [min(faster), max(faster)],
        "alone": statistics.median(alone_rates),
        "together": statistics.median(rates),
        "first_alone": statistics.median(alone_firsts),
        "worst_first_ratio": statistics.median(firsts),
        "same_answers": sum(same) / len(same),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--export", type=Path, help="a folder of phisense export, for llama.cpp")
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--answer", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    files = sorted(one for one in asked.images.iterdir() if one.suffix in (".jpg", ".png"))
    pictures = [open_image(one) for one in files[: asked.visitors]]
    found = {}
    for name, folder in (("torch", asked.model), ("llama", asked.export)):
        if folder is None:
            continue
        engine = open_engine(folder)
        engine._batcher._stop_ids = frozenset()
        images = [engine.encode_image(one) for one in pictures]
        found[name] = measure(engine, images, asked.question, asked.answer, asked.rounds)
        print(f"{name}, {engine.where}: {json.dumps(found[name])}", flush=True)
        del engine
    print(json.dumps(found))


if __name__ == "__main__":
    main()
