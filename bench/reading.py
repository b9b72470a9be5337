"""Reading stored features beside the training that consumed them. `python bench/reading.py DEMO`

DEMO is what `phisense demo --out DEMO` left. Pictures are read at random, in batches of a training
step, every shard verified before. A training is taken to have read a picture for each sample,
although conversations about the same picture share one reading.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from phisense import artifacts
from phisense.recipe import load_recipe
from phisense.vision.encoders.encode import encoder_facts
from phisense.vision.store import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the folder of a demo that has run")
    parser.add_argument("--batch", type=int, default=32, help="pictures in a read")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    recipe = load_recipe(asked.demo / "recipe.yaml", (f"root={asked.demo.resolve()}",))
    vision, dtype = recipe.vision, recipe.features.dtype
    store = FeatureStore(
        recipe.store, facts=encoder_facts(vision.part, vision.encoder, vision.layer), dtype=dtype
    )
    store.batch(store.names)  # every shard opened and verified
    rng, rates = random.Random(0), []
    for _ in range(asked.rounds):
        chosen = [rng.sample(store.names, asked.batch) for _ in range(100)]
        started = time.monotonic()
        for names in chosen:
            store.batch(names)
        rates.append(100 * asked.batch / (time.monotonic() - started))
    reading = statistics.median(rates)
    stages = artifacts.read_json(recipe.run / "train.json")["stages"]
    epochs = {"align": recipe.train.align.epochs, "instruct": recipe.train.instruct.epochs}
    consumed = {
        name: stage["samples"] * epochs[name] / stage["seconds"] for name, stage in stages.items()
    }
    print(json.dumps({
        "read_per_s": round(reading), "range": [round(min(rates)), round(max(rates))],
        "consumed_per_s": {name: round(rate, 1) for name, rate in consumed.items()},
        "times": round(reading / max(consumed.values())),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
