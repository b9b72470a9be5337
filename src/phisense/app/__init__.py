"""The Gradio app: one image, questions by keyboard or microphone, streamed answers."""

from .examples import Example, find_examples
from .limits import Limits
from .page import build, launch

__all__ = ["Example", "Limits", "build", "find_examples", "launch"]
