"""llama.cpp beside PyTorch in one process: both configure the tiles of processors with AMX, each for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

BOTH = """
import sys
from pathlib import Path
import torch
from phisense.chat import llama_trial
from phisense.chat.llama_context import LlamaContext, listening

folder = Path(sys.argv[1])
with listening():
    llama_trial.write_model(folder / "whole.gguf")
    assert llama_trial.quantise(folder / "whole.gguf", folder / "small.gguf", llama_trial.FILE_TYPES["Q8_0"])
context = LlamaContext(folder / "small.gguf", window=128, sequences=1, threads=2)
ids = [7 * i % 256 for i in range(33)]
first = context.decode(0, 0, ids)
for _ in range(3):
    torch.randn(512, 512, dtype=torch.bfloat16) @ torch.randn(512, 512, dtype=torch.bfloat16)
    context.forget(0)
    assert (context.decode(0, 0, ids) == first).all()
print("alike")
"""


def test_products_in_bfloat16_between_two_answers(tmp_path: Path) -> None:
    """In a process of its own: where llama.cpp computed in PyTorch's thread, the second answer ended it by SIGILL."""
    ran = subprocess.run([sys.executable, "-c", BOTH, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300)
    assert (ran.returncode, ran.stdout.strip().splitlines()[-1:]) == (0, ["alike"]), ran.stderr[-2000:]
