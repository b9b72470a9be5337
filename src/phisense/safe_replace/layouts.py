"""Which files an artifact consists of, by its kind, and how it is recognized."""

from __future__ import annotations

MANIFEST = "manifest.json"
#: In every staging folder from its creation until its manifest is written: identifies leftovers as
#: ours.
PARTIAL_MARKER = ".phisense-partial"
MAX_MANIFEST_BYTES = 256 * 2**20  # bytes; a million images need 150 MB
#: Files that Trainer and phisense write into a checkpoint.
CHECKPOINT_FILES = (
    "trainable.safetensors",
    "guard.json",
    "manifest.json",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "optimizer.safetensors",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
)
#: Files of an unfinished artifact, as patterns of relative paths, matched part by part.
UNFINISHED_LAYOUTS: dict[str, tuple[str, ...]] = {
    "run": (
        "recipe.yaml",
        "parts.json",
        "metrics.jsonl",
        "loss.png",
        "train.json",
        "common_answers.json",
        "weights/trainable.safetensors",
        *(
            f"adapter/{name}"
            for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")
        ),
        "stages/*/trainable.safetensors",
        "stages/*/random.safetensors",
        "stages/*/runs/*/events.out.*",
        *(f"stages/*/checkpoint-*/{name}" for name in CHECKPOINT_FILES),
    ),
    "checkpoint": CHECKPOINT_FILES,
    "feature store": ("features-*.safetensors", "pictures.json", "pictures.next.json"),
}
#: Where an artifact of the kind contains other artifacts, and of which kind; any other nested
#: artifact is foreign.
NESTED_ARTIFACTS = {
    "run": {"stages/*": "stage", "stages/*/checkpoint-*": "checkpoint"},
    "space": {"model": "model folder", "model/gguf": "gguf folder"},
}
#: First line of the recipe in a run: distinguishes an unfinished run from a user's folder with a
#: recipe.
RESOLVED_RECIPE_HEADER = b"# The recipe as phisense train resolved it."
