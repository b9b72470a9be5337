"""The Gradio page: a picture, questions by keyboard or by voice, answers as they are made."""

from .examples import Example, find_examples
from .page import build, launch

__all__ = ["Example", "build", "find_examples", "launch"]
