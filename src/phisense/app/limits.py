"""What one visitor may ask of the page: every bound in one place, so that the page can say them and tests can meet them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    question: int = 2_000  # characters
    answer: int = 256  # tokens, at first
    longest_answer: int = 1_024  # tokens, at most
    seconds: float = 120.0  # for one answer
    upload: str = "32mb"
    body: int = 2**20  # bytes of a request that is no upload
    waiting: int = 16  # visitors in the queue behind the one who is answered
    visitors: int = 256  # remembered at once; a picture's vectors are some megabytes each
    hour: int = 3600  # seconds, after which uploads and idle visitors are forgotten


PICTURES = ("JPEG", "PNG", "WEBP", "GIF")
