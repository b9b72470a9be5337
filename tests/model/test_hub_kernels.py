"""Native code is never asked for at the hub, though the package that fetches it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = """
import pathlib
pathlib.Path({asked!r}).touch()

def get_kernel(*names, **options):
    with open({asked!r}, "a") as file:
        print(*names, file=file)
    raise RuntimeError("nothing is fetched in a test")
"""
BITSANDBYTES = "import bitsandbytes, bitsandbytes.backends.cpu.ops"
#: What loads models here, by way of transformers and PEFT.
ALL = (
    f"{BITSANDBYTES}; import transformers.modeling_utils, peft, accelerate; from transformers"
    " import BitsAndBytesConfig, Trainer"
)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file that is written to when the fake package `kernels` is imported or asked; the package
    is on the path of `run`.
    """
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(FAKE.format(asked=str(tmp_path / "asked")))
    about = tmp_path / "kernels-0.99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.99.0\n")
    return tmp_path / "asked"


def run(folder: Path, code: str) -> str:
    paths = [str(folder), str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        f"import phisense; {ALL}",
        f"import transformers, phisense; {ALL}",
        (
            "import phisense.model.assembly, phisense.merging, phisense.training, torch;"
            " from phisense.model.quantized import four_bit_backend;"
            " print(four_bit_backend(torch.device('cpu')))"
        ),
    ],
)
def test_nobody_is_asked(asked: Path, code: str) -> None:
    said = run(asked.parent, code)
    assert not asked.exists()
    assert "fetched from the hub" not in said


@pytest.mark.slow
def test_the_control_it_is_asked_where_nothing_forbids_it(asked: Path) -> None:
    """On every processor, by making bitsandbytes believe in the instructions for which it asks."""
    code = (
        "import torch; torch.cuda.is_available(); import importlib.util, sys\n"
        "import kernels\n"  # on the path, and importable
        "pathlib = __import__('pathlib')\n"
        f"pathlib.Path({str(asked)!r}).unlink()\n"
        "source = pathlib.Path(importlib.util.find_spec('bitsandbytes').origin).parent / 'backends'"
        " / 'cpu' / 'ops.py'\n"
        "assert 'has_avx512bf16()' in source.read_text()\n"
        "import bitsandbytes.functional\n"
        "import bitsandbytes.backends.cpu.ops as ops\n"
        "text = source.read_text().split('if has_avx512bf16():')[1].split('@register_kernel')[0]\n"
        "import textwrap; exec(textwrap.dedent(text), ops.__dict__)\n"
    )
    run(asked.parent, code)
    assert "kernels-community/quantization-bitsandbytes" in asked.read_text()
