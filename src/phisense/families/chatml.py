"""ChatML, the chat format of several families, as their templates have it: the tag ends in a line
break, messages are trimmed, and a conversation does not end with the end of the text.
"""

from __future__ import annotations

from .base import ChatFormat

CHATML = ChatFormat(
    tag="<|im_start|>{role}\n",
    end="<|im_end|>",
    after_end="\n",
    end_of_text="<|endoftext|>",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    closes_text=False,
    trims=True,
)
