"""`make parts`: trains the practice parts anew from their fixed seeds and puts each in its place
when it is whole.

About six hours on two cores. espeak-ng must be installed for the speech part and the spoken
questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ... import safe_replace

PARTS = Path(__file__).parent.parent / "parts"


def main() -> None:
    """Train the parts named on the command line; all if none is named."""
    parser = argparse.ArgumentParser(
        prog="python -m phisense.practice.pretrain", description=__doc__
    )
    parser.add_argument("parts", nargs="*", help="which ones; all if none is named")
    parser.add_argument("--out", type=Path, default=PARTS, help="where to put them")
    asked = parser.parse_args()
    for name, make in _makers().items():
        if not asked.parts or name in asked.parts:
            print(f"== {name}", flush=True)
            goal = asked.out / name
            if goal.exists() and asked.out != PARTS:
                parser.error(f"{goal} is there already: name another --out")
            with safe_replace.staging_folder(goal, kind="part") as aside:
                make(aside)
                (aside / safe_replace.PARTIAL_MARKER).unlink()
                safe_replace.discard(goal)  # a shipped part, which is in git
                aside.rename(goal)


def _makers() -> dict[str, Callable[[Path], None]]:
    from . import language, speech, vision, voices

    return {
        "vision": vision.main,
        "language": language.main,
        "speech": speech.main,
        "spoken": voices.record_questions,
    }


if __name__ == "__main__":
    main()
