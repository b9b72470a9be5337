"""The Gradio page: a picture, questions by keyboard or by voice, answers as they are made."""

from .examples import Example, find_examples
from .limits import Limits
from .page import build, launch

__all__ = ["Example", "Limits", "build", "find_examples", "launch"]
