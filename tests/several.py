"""Conversations with several pictures, drawn at random: for tests over the kind."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from phisense.conversations import IMAGE, Conversation, Message

MOST_PICTURES = 4
WORDS = ("red", "What is this?", "And that", "left of it", "Name both.", "one more", "or not")


def drawn_pictures(count: int, *, seed: int = 0, side: int = 40) -> list[Image.Image]:
    """Pictures of random pixels, no two alike."""
    rng = random.Random(f"pictures {seed}")
    return [Image.frombytes("RGB", (side, side), rng.randbytes(side**2 * 3)) for _ in range(count)]


def drawn_conversation(rng: random.Random, names: Sequence[str], label: str) -> Conversation:
    """One to three exchanges with 0 to `MOST_PICTURES` pictures in the questions: before, between
    and behind their words, several in one question or in several, some of them twice.
    """
    exchanges = rng.randint(1, 3)
    images = tuple(rng.choice(list(names)) for _ in range(rng.randint(0, MOST_PICTURES)))
    pieces = [[rng.choice(WORDS) for _ in range(rng.randint(1, 3))] for _ in range(exchanges)]
    for _ in images:
        place = rng.choice(pieces)
        place.insert(rng.randint(0, len(place)), IMAGE)
    join = rng.choice(("\n", " ", ""))
    messages = []
    for words in pieces:
        messages.append(Message("user", join.join(words)))
        messages.append(Message("assistant", f"{rng.choice(WORDS)} {rng.randint(0, 99)}."))
    return Conversation(label, tuple(messages), images)


def to_row(conversation: Conversation) -> dict[str, object]:
    """The conversation as a row of LLaVA's format, with a list of `images`."""
    speakers = {"user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[m.role], "value": m.text} for m in conversation.messages]
    return {"id": conversation.id, "images": list(conversation.images), "conversations": turns}
