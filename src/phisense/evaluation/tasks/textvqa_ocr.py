"""TextVQA with OCR tokens in the prompt, as in LLaVA. Also needs
TextVQA_Rosetta_OCR_v0.2_val.json.

This and `textvqa` are different tasks: their metrics must not be compared.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from . import textvqa

TASK = replace(
    textvqa.TASK,
    name="textvqa-ocr",
    title="TextVQA with OCR tokens",
    load=partial(textvqa.load, hints=True),
)
