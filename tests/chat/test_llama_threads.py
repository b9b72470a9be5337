"""llama.cpp beside PyTorch in one process: both configure the tiles of processors with AMX, each
for itself.
"""

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
from phisense.chat import llama_context, llama_probe_worker
from phisense.chat.llama_context import LlamaContext, capture_errors

folder = Path(sys.argv[1])
with capture_errors():
    llama_probe_worker.write_probe_model(folder / "whole.gguf")
    kind = llama_probe_worker.FILE_TYPES["Q8_0"]
    assert llama_probe_worker.quantize_probe(folder / "whole.gguf", folder / "small.gguf", kind)
llama_context.validate_gguf = lambda path: None  # the trial's model is no Phi-3
context = LlamaContext(folder / "small.gguf", window=128, sequences=1, threads=2)
ids = [7 * i % 256 for i in range(33)]
first = context.decode(0, 0, ids)
for _ in range(3):
    torch.randn(512, 512, dtype=torch.bfloat16) @ torch.randn(512, 512, dtype=torch.bfloat16)
    context.truncate_to(0)
    assert (context.decode(0, 0, ids) == first).all()
print("alike")
"""


@pytest.mark.slow
def test_products_in_bfloat16_between_two_answers(tmp_path: Path) -> None:
    """In a process of its own: where llama.cpp computed in PyTorch's thread, the second answer
    ended it by SIGILL.
    """
    ran = subprocess.run(
        [sys.executable, "-c", BOTH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = ran.stdout.strip().splitlines()[-1:]
    assert (ran.returncode, said) == (0, ["alike"]), ran.stderr[-2000:]
