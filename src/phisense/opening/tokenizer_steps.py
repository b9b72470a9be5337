"""Whether a loaded tokenizer splits texts as its tokenizer.json says.

transformers' tokenizer classes, such as `GPT2Tokenizer`, read vocabulary and merges from the file
and build the steps before them anew. SmolLM2's tokenizer_config.json names that class, and its
tokenizer.json splits numbers into digits, which the class does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_STEPS = ("normalizer", "pre_tokenizer")


def has_own_steps(tokenizer: Any, folder: Path) -> bool:
    """Whether normalizer or pre-tokenizer of a fast tokenizer are others than those in the folder's
    tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "__init__" not in type(tokenizer).__dict__ or not path.is_file():
        return False
    written = json.loads(path.read_text(encoding="utf-8"))
    # read and written again, so that keys that are left out have their values
    empty = Tokenizer.from_str(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    )
    for step in _STEPS:
        if written.get(step) is None:
            if getattr(backend, step) is not None:
                return True
            continue
        whole = {**json.loads(empty.to_str()), step: written[step]}
        there = json.loads(Tokenizer.from_str(json.dumps(whole)).to_str())[step]
        made = getattr(backend, step)
        if made is None:
            return True
        setattr(empty, step, made)
        if json.loads(empty.to_str())[step] != there:
            return True
    return False
