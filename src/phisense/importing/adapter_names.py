"""Names of an adapter's weights, converted to those of the native class in current transformers.

Adapters use other names, too, depending on where and when they were trained:

    base_model.model.model.language_model.layers.0...   the native class, current
    base_model.model.language_model.model.layers.0...   the same before transformers 4.52
    base_model.model.model.layers.0...                  LLaVA's classes, or the text part alone
    ... mm_projector.0 and mm_projector.2               LLaVA's name of the projector
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TEXT = re.compile(r"^model\.(?=layers\.|embed_tokens|norm\.)")
_RENAMES = (
    (re.compile(r"^(?:base_model\.model\.)+"), ""),
    (re.compile(r"\.modules_to_save(?:\.default)?\."), "."),
    (re.compile(r"^language_model\.lm_head"), "lm_head"),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^(?:model\.)?mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^(?:model\.)?mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^(?=vision_tower\.|multi_modal_projector\.)"), "model."),
    (re.compile(r"^model\.vision_tower\.vision_model\."), "model.vision_tower."),
    (_TEXT, "model.language_model."),
)


def native_name(name: str) -> str:
    """Convert a weight's name to that of the native class."""
    for pattern, by in _RENAMES:
        name = pattern.sub(by, name)
    return name


def is_text_only(name: str) -> bool:
    """Whether the name is one of the text part alone, or of LLaVA's own classes."""
    return _TEXT.match(_RENAMES[0][0].sub("", name)) is not None


def aliases(name: str) -> Iterable[str]:
    """A module's current name, its earlier names, and its name in the text part alone."""
    yield name
    old = re.sub(
        r"^model\.(?=vision_tower|multi_modal_projector)",
        "",
        re.sub(r"^model\.language_model\.", "language_model.model.", name),
    )
    yield old
    yield re.sub(r"^vision_tower\.", "vision_tower.vision_model.", old)
    yield re.sub(r"^model\.language_model\.", "model.", name)
