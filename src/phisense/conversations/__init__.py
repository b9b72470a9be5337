"""Readers for every accepted format, the check, and `convert`. Nothing here needs torch.

sources.py    what kind of data a path holds       documents.py, tables.py    its rows, as a stream
shapes.py     a row of any shape -> turns          rows.py                    what is wrong with them
check.py      a whole data set                     defects.py                 every class of defect
roots.py      where its pictures are               read.py, questions.py      what training and evaluation read
"""

from .check import Checked, check
from .questions import CAPTION_KINDS, read_questions
from .read import read_conversations
from .roots import Pictures
from .types import IMAGE, Conversation, Message, Question, Role

__all__ = [
    "CAPTION_KINDS",
    "IMAGE",
    "Checked",
    "Conversation",
    "Message",
    "Pictures",
    "Question",
    "Role",
    "check",
    "read_conversations",
    "read_questions",
]
