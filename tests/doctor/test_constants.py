"""What doctor predicts from is imported from where it is done: its own numbers are assumptions and
measurements, each named here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

import phisense.doctor
from phisense.doctor.memory import nf4_bytes
from phisense.model.quantized import NF4_BLOCK, NF4_SCALES_BLOCK

DOCTOR = Path(phisense.doctor.__file__).parent
#: What nothing else in phisense defines.
OWN = {
    "CHARACTERS_PER_TOKEN", "CPU_BASELINE", "CPU_UTILISATION", "CUDA_BASELINE", "CUDA_UTILISATION",
    "FRAGMENTATION", "GB", "GPUS", "HOLES", "NUM_LONGEST", "QUESTION_TOKENS", "SAMPLED_ROWS",
    "TAGS_PER_MESSAGE",
}  # fmt: skip


def numbers(source: str) -> set[str]:
    """Names that a module assigns something with a number in it, at its top."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            values = [one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)]
            if any(isinstance(value, int | float) for value in values):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {
                    one.id
                    for target in targets
                    for one in ast.walk(target)
                    if isinstance(one, ast.Name)
                }
    return found


def test_numbers_of_doctor_are_its_own() -> None:
    found = {name for path in DOCTOR.glob("*.py") for name in numbers(path.read_text())}
    assert found == OWN


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("IMAGES_ENCODED_AT_ONCE = 32", {"IMAGES_ENCODED_AT_ONCE"}),
        ("A, B = 0.6 * GB, 2", {"A", "B"}),
        ("TABLE: dict[str, int] = {'a': 1}", {"TABLE"}),
        ("from ..training.run_context import CALIBRATION_IMAGES", set()),
        ("KNOWN = {'a': 'b'}", set()),
    ],
)
def test_a_number_is_found(source: str, found: set[str]) -> None:
    assert numbers(source) == found


def test_the_sizes_of_nf4_blocks_are_those_of_bitsandbytes() -> None:
    weight = torch.randn(256, 96)
    codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert (state.blocksize, state.state2.blocksize) == (NF4_BLOCK, NF4_SCALES_BLOCK)
    held = (codes, state.absmax, state.state2.absmax, state.offset)
    assert sum(one.numel() * one.element_size() for one in held) == nf4_bytes(weight.numel())
