"""Chat: a `ChatSession` holds one user's turns, an `Engine` generates the next answer."""

from .engine import Engine, Sampling
from .session import ChatImage, ChatSession, Turn

__all__ = ["ChatImage", "ChatSession", "Engine", "Sampling", "Turn"]
