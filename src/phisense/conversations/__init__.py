"""Readers for every accepted format, and the check. Nothing here needs torch."""

from .read import read_conversations
from .types import IMAGE, Conversation, Message, Question, Role

__all__ = ["IMAGE", "Conversation", "Message", "Question", "Role", "read_conversations"]
