"""Talking: a `Session` holds one person's turns, an `Engine` says the next one."""

from .engine import Engine, Sampling
from .session import Session, Turn

__all__ = ["Engine", "Sampling", "Session", "Turn"]
