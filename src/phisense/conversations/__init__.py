"""Readers for every accepted format, `check`, and `convert`. Nothing here needs torch.

sources.py                   opens a file or folder of data
json_reader.py, csv_reader.py, columnar.py    stream its rows
row_parser.py, formats/      a row of any format -> turns and images
keys.py, grouped_fields.py   the accepted keys; the keys of a mapping by group
question_answer.py, answers.py    a question and its answer in separate keys
options.py, option_answers.py     the options of a question; which one an answer means
rows.py                      the defects of a row
check.py                     validates a whole data set
defects.py                   every class of defect
image_finder.py              resolves image names to files
read.py, questions.py        what training and evaluation read
"""

from .check import CheckReport, check
from .image_finder import ImageFinder
from .questions import CAPTION_KINDS, read_questions
from .read import read_conversations
from .types import IMAGE, Conversation, Message, Question, Role

__all__ = [
    "CAPTION_KINDS",
    "IMAGE",
    "CheckReport",
    "Conversation",
    "ImageFinder",
    "Message",
    "Question",
    "Role",
    "check",
    "read_conversations",
    "read_questions",
]
