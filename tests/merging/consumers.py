"""Runs code where phisense cannot be imported, as whoever got only the folder would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "phisense":
            raise ImportError("phisense is not to be had here")

sys.meta_path.insert(0, Refuse())
sys.modules.pop("phisense", None)
try:
    import phisense
except ImportError:
    pass
else:
    sys.exit("phisense could be imported")
given = json.loads(sys.argv[1])
"""


def alone(code: str, folder: Path, **given: Any) -> Any:
    """What `code` prints last, as JSON; it finds the keyword arguments in `given`."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = json.dumps(
        {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    )
    ran = subprocess.run(
        [sys.executable, "-c", ALONE + code, said],
        capture_output=True,
        text=True,
        env=clean,
        cwd=folder,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])
