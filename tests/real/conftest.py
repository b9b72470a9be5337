"""The package of `bench/real_parts.py`, which is no part of phisense's wheel."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
