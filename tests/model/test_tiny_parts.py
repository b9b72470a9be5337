"""Tiny parts have what real ones have, so that tests on them say something about real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..tiny import MASSIVE, first_layer, make_language, make_real_language

TALK = "<|user|>\nWhat colour is it?<|end|><|assistant|>\nRed.<|end|>"


def hidden_values(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return first_layer(model, tokenizer(TALK, return_tensors="pt")["input_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_massive_activation_at_the_first_token(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    hidden = hidden_values(make_real_language(tmp_path, tied=tied), dtype)
    assert hidden[0].abs().max() == pytest.approx(MASSIVE, rel=0.005)
    assert 1 < hidden[1:].abs().median() < 3
    assert hidden[1:].abs().max() < 100
    plain = hidden_values(make_language(tmp_path / "plain"), dtype)
    assert plain.abs().max() < 100  # the control: what random parts lack


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_the_key_heads(tmp_path: Path, tied: bool) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        make_real_language(tmp_path, tied=tied), output_loading_info=True
    )
    assert not any(report.values())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.config.num_key_value_heads < model.config.num_attention_heads
