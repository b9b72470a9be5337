"""Limits on what one visitor may send and request, in one place so that the page can report them
and tests can check them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..vision.image_io import IMAGE_FORMATS


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what visitors of the page may send and request."""

    max_question_length: int = 2_000  # characters
    default_answer_tokens: int = 256  # tokens per answer by default
    max_answer_tokens: int = 1_024  # tokens per answer at most
    max_answer_seconds: float = 120.0  # seconds per answer
    max_upload_bytes: int = 32 * 2**20  # bytes of a file
    max_uploaded_bytes: int = 2 * 2**30  # bytes received per hour, from all visitors
    max_uploaded_bytes_each: int = 2**28  # bytes received per hour, from one address
    max_body_bytes: int = 2**16  # bytes of a request that is not an upload
    max_kept_bytes: int = 48 * 2**10  # bytes of a conversation that a browser brings back
    max_session_hash_length: int = 64  # characters of a session hash
    # Seconds to receive the headers of a request, and before its body must average
    # `min_bytes_per_second`.
    request_timeout: float = 20.0
    min_bytes_per_second: int = 2**14  # average bytes per second
    # Of a shared resource no client may hold more than is left free (`fair_share.py`): one address
    # alone gets half. A school or an office is one address, so these limits are wide, and the
    # narrow ones count per visitor. Requests waiting in the queue; 9 from one address if there is
    # no other:
    queue_size: int = 16
    # queued requests of one visitor: an image and a question are three, in each of two tabs
    max_queued_each: int = 6
    # Concurrent requests, or half of the process's open-file limit if that is less; each tab keeps
    # one open.
    max_open_requests: int = 2048
    # Sessions kept: an image's embeddings take several megabytes each. The address with the most
    # sessions loses one first.
    max_sessions: int = 256
    retention_seconds: int = 3600  # seconds until uploads and idle sessions expire


PICTURE_FORMATS = tuple(name for name in IMAGE_FORMATS if name not in ("BMP", "TIFF"))
