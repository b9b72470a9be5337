"""Transcribes a second of silence with a CTranslate2 Whisper in a subprocess: run as a script by
`sandbox`, never imported.

    argv    one JSON object: memory (bytes), seconds (CPU time); the folder; one JSON object: bins,
            frames, prompt (a token id)
    stderr  the last line says why the model cannot be loaded

On inconsistencies that it does not check for, CTranslate2 aborts the process or reads out of
bounds.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Load a CTranslate2 Whisper within the limits and decode silence; exit with the error."""
    limits, asked = json.loads(sys.argv[1]), json.loads(sys.argv[3])
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"] + 2))
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    import ctranslate2
    import numpy as np

    try:
        check_numbers(Path(sys.argv[2]) / "model.bin")
        model = ctranslate2.models.Whisper(
            sys.argv[2], device="cpu", compute_type="int8", intra_threads=1, inter_threads=1
        )
        sound = ctranslate2.StorageView.from_array(
            np.zeros((1, asked["bins"], asked["frames"]), np.float32)
        )
        if model.is_multilingual:
            with suppress(RuntimeError):  # not multilingual: its user sets the language
                model.detect_language(sound)
        heard = model.generate(
            sound, [[asked["prompt"]]], beam_size=1, max_length=4, return_scores=True
        )
    except MemoryError:
        sys.exit("more memory than it may have")
    except Exception as error:  # noqa: BLE001, a child process that runs others' weights
        sys.exit(" ".join(f"{error}".split())[:200] or type(error).__name__)
    if not all(map(math.isfinite, heard[0].scores)):
        sys.exit("scores that are no numbers")


def check_numbers(path: Path) -> None:
    """Check that weights are finite and within float16; the header was validated before."""
    import numpy as np

    data = np.memmap(path, np.uint8, "r")

    def number(at: int, form: str) -> int:
        return int(struct.unpack(form, data[at : at + struct.calcsize(form)].tobytes())[0])

    at = 4
    at += 2 + number(at, "<H") + 4
    count, at = number(at, "<I"), at + 4
    for _ in range(count):
        at += 2 + number(at, "<H")
        at += 1 + 4 * int(data[at])
        kind, length = int(data[at]), number(at + 1, "<I")
        at += 5
        if kind in (0, 4):
            weight = np.frombuffer(
                data[at : at + length].tobytes(), np.float32 if kind == 0 else np.float16
            )
            if weight.size and not abs(weight).max() <= 65_504:
                sys.exit("weights that are no numbers")
        at += length


if __name__ == "__main__":
    main()
