"""Whether the output matrix of a language part is its embedding, and a configuration that says so.

`tie_word_embeddings` decides what is saved and what an opened model multiplies by: where it is
true the head is not saved, where it is false the embedding does not take its place. So it has to
say what the weights are, or the folder opens with another head than the model had.

                            config: tied                       config: not tied
head is the embedding       the embedding is saved once        made tied
head is equal to it         as before                          both are saved
head differs from it        made untied, both are saved        both are saved
"""

from __future__ import annotations

import logging
from typing import Any

import torch

_logger = logging.getLogger(__name__)
KEY = "tie_word_embeddings"


def match_config_to_head(model: Any, name: object) -> None:
    """Set the configuration to what the weights are; `name` is the model's in a log entry, which
    says when weights that should be one have become two.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight.is_meta:
        return
    shared = head.weight.data_ptr() == table.weight.data_ptr()
    configs = [model.config, getattr(model.config, "text_config", None)]
    says = [bool(getattr(one, KEY)) for one in configs if one is not None]
    if shared or not any(says):
        tied = shared
    else:
        tied = torch.equal(head.weight, table.weight)
        if not tied:
            _logger.warning(
                "%s ties its output matrix to the embedding, and they differ: both are kept", name
            )
    for one in configs:
        if one is not None and bool(getattr(one, KEY)) is not tied:
            setattr(one, KEY, tied)
