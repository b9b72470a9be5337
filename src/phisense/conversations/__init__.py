"""Readers for every accepted format, and the check. Nothing here needs torch."""

from .check import Checked, check
from .questions import read_questions
from .read import read_conversations
from .types import IMAGE, Conversation, Message, Question, Role

__all__ = ["IMAGE", "Checked", "Conversation", "Message", "Question", "Role", "check", "read_conversations", "read_questions"]
