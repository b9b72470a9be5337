r"""Data formats by name, in order of precedence: each is one file with a `FORMAT`, registered in
`seams.FORMAT_MODULES`.

    llava                {"id", "image": name | [names] | null, "conversations": [{"from": "human",
                         "value": "<image>\n..."}, ...]}; LLaMA-Factory's with "images", "system"
    messages             {"messages": [{"role", "content": text or parts}], "images": [...]}
                         TRL, OpenAI, `phisense convert`
    texts                {"images": [...], "texts": [{"user", "assistant"}]}
                         Cauldron, FineVision
    prompt_completion    {"prompt": turns, "completion": turns or text}
                         TRL
    question_answer      {"file_name" or "image", "question", "answer"} or {"file_name", "text" or
                         "caption"}
                         VQA data sets, Alpaca, image folders
"""

from ... import seams
from ...registry import Registry
from .base import Format, RawRow

FORMATS: Registry[Format] = Registry("data format", "FORMAT", seams.FORMAT_MODULES)

__all__ = ["FORMATS", "Format", "RawRow"]
