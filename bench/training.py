"""Training beside TRL: the same model, samples, LoRA, optimizer and number of supervised tokens,
alternating. `python bench/training.py`

Needs `pip install trl`. A Phi-3 of about 106 million random weights reads CLIP-B/16-224 (196 slots
a picture) and is tuned with LoRA on conversations as long as LLaVA-Instruct-150K's, 1.94 a picture,
for one epoch.

    ours    phisense train: stored features, a picture once for all its conversations, rows of like
            length, logits where there is a loss
    trl     SFTTrainer with PEFT: pictures encoded on the fly, padded batches, loss on the
            assistant's turns

Both begin with the same weights. Each side trains in a process of its own. Useful tokens are those
of every conversation by itself, padding not counted. After training both are asked for their loss
on the same conversations that neither was trained on. `--levers` trains our side with one thing
taken away, or added, at a time. What the features cost once is told beside it and not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from parts import make_parts

RATE, RANK, BATCH = 5e-4, 16, 8
#: Share of LLaVA-Instruct-150K's rows, exchanges, and words of a question and of an answer: near
#: its own means.
KINDS = ((0.36, 4, 9, 20), (0.15, 1, 12, 85), (0.49, 1, 18, 80))
#: --levers: what is taken away, as changes of the recipe or by `without`.
LEVERS = {
    "pictures encoded beforehand": ("features.dtype=pixels", "features.folder=features/pixels"),
    "a picture once for its conversations": ("train.share_pictures=false",),
    "rows end to end, not padded": ("without=spans",),
    "logits where there is a loss": ("without=logits",),
    "freed memory kept for the next step": ("without=kept",),
}
#: --levers, too: what is not part of the comparison, since it costs time or changes the loss.
ADDED = {
    "checkpointing": ("train.gradient_checkpointing=true",),
    "2x2 pooling, 49 tokens a picture": ("projector.pool=2",),
}


def without(what: str) -> None:
    """Takes away what no recipe can."""
    import torch
    from torch import nn

    from phisense.model import arithmetic
    from phisense.prompt import IGNORE_INDEX
    from phisense.training import heap_callback, trainer
    from phisense.training.objectives import supervised

    if what == "kept":
        heap_callback.keep_freed_memory = lambda: False
    if what == "spans":
        arithmetic.training_attention = lambda device: "sdpa"
    if what == "logits":
        trainer.logits_at = lambda model, where: contextlib.nullcontext()

        def loss(
            outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor
        ) -> torch.Tensor:
            logits = outputs.logits.float()[:, :-1].flatten(0, 1)
            return (
                nn.functional.cross_entropy(
                    logits, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
                )
                / num_items_in_batch
            )

        supervised.supervised_loss = loss


def make_data(root: Path, pictures: int) -> None:
    """Pictures of noise, and conversations of the practice vocabulary's commonest words about
    them.
    """
    import numpy as np
    from PIL import Image

    rng = random.Random(0)
    words = (
        "the",
        "a",
        "red",
        "blue",
        "green",
        "large",
        "small",
        "circle",
        "square",
        "star",
        "is",
        "are",
        "top",
        "left",
        "thing",
        "many",
    )
    (root / "images").mkdir()
    for split, count in (("train", pictures), ("heldout", 16)):
        rows = []
        for number in range(count):
            name = f"{split}-{number:03}.jpg"
            noise = np.random.default_rng(number + (split == "heldout") * 10_000).integers(
                0, 255, (14, 14, 3), np.uint8
            )
            Image.fromarray(noise).resize((224, 224)).save(root / "images" / name)
            for _ in range(rng.choice((1, 2, 2, 2, 2, 3)) if number % 8 else 1):
                _, exchanges, asked, told = rng.choices(KINDS, [kind[0] for kind in KINDS])[0]
                turns = []
                for turn in range(exchanges):
                    question = " ".join(
                        rng.choices(words, k=max(3, round(rng.gauss(asked, asked / 4))))
                    )
                    answer = " ".join(
                        rng.choices(words, k=max(3, round(rng.gauss(told, told / 4))))
                    )
                    turns += [
                        {
                            "from": "human",
                            "value": f"<image>\n{question}?" if turn == 0 else f"{question}?",
                        },
                        {"from": "gpt", "value": f"{answer}."},
                    ]
                rows.append({"id": f"{split}-{len(rows)}", "image": name, "conversations": turns})
        (root / f"{split}.json").write_text(json.dumps(rows))


def write_recipe(root: Path) -> None:
    stage = {
        "epochs": 1,
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
        "learning_rate": RATE,
        "max_length": 1024,
        "warmup_ratio": 0.03,
    }
    raw = {
        "name": "bench",
        "root": str(root),
        "language": {"part": str(root / "language")},
        "vision": {"part": str(root / "vision")},
        "data": {"images": "images", "instruct": ["train.json"], "held_out": ["heldout.json"]},
        "features": {"dtype": "float32"},
        "train": {
            "quantize": False,
            "gradient_checkpointing": False,
            "lora": {"rank": RANK, "alpha": 2 * RANK},
            "instruct": stage,
            "log_every": 1,
        },
        "merge": {"dtype": "float32"},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(raw))


def ours(root: Path, changes: tuple[str, ...], device: str = "cpu") -> dict[str, Any]:
    from phisense.malloc import set_mmap_threshold

    taken = [change.removeprefix("without=") for change in changes if change.startswith("without=")]
    set_mmap_threshold()  # as the command does

    from phisense.recipe import load_recipe
    from phisense.training import Training
    from phisense.training.trainer import StageTrainer

    for what in taken:
        without(what)
    spent: list[float] = []
    train = StageTrainer.train

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        result = train(*args, **kwargs)
        spent.append(time.process_time() - began)
        return result

    StageTrainer.train = timed  # type: ignore[method-assign]
    changes = tuple(change for change in changes if not change.startswith("without="))

    result = Training(
        load_recipe(
            root / "recipe.yaml", ("name=ours", "features.folder=features/bench", *changes)
        ),
        lambda row: None,
        overwrite=True,
        device=device,
    )()
    stage = result.stages["instruct"]
    losses = [
        json.loads(line)
        for line in (root / "runs" / "ours" / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        "tokens": stage.tokens,
        "seconds": stage.seconds,
        "cpu": sum(spent),
        "samples": stage.samples,
        "losses": [(row["step"] / stage.steps, row["loss"]) for row in losses],
    }


def start(root: Path, device: str = "cpu") -> None:
    """The model that both begin with, as a native folder: assembled and calibrated as `phisense
    train` does.
    """
    import torch

    from phisense.model import Phi3WithProjector, save_model
    from phisense.model.calibrate import calibrate
    from phisense.recipe import load_recipe
    from phisense.training.run_context import CALIBRATION_IMAGES
    from phisense.vision.encoders.encode import encoder_facts
    from phisense.vision.store import FeatureStore

    recipe = load_recipe(root / "recipe.yaml", ("features.folder=features/bench",))
    built = Phi3WithProjector.from_recipe(
        recipe, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16
    )
    store = FeatureStore(
        recipe.store,
        facts=encoder_facts(recipe.vision.part, "clip", -2),
        dtype=recipe.features.dtype,
    )
    some = random.Random(recipe.seed).sample(store.names, min(len(store), CALIBRATION_IMAGES))
    features = torch.stack([store.features(name).float() for name in some]).to(built.device)
    calibrate(built.projector.float(), features, built.model.get_input_embeddings().weight)
    save_model(built, root / "start")


def trl(root: Path, *, gpu: bool = False) -> dict[str, Any]:
    """On a `gpu` as QLoRA: NF4, bfloat16, and the gradient checkpointing that is TRL's default
    there.
    """
    import torch
    from datasets import Dataset
    from datasets import Image as Picture
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from phisense.families import FAMILIES

    chat = FAMILIES["phi3"].chat
    end = chat.end
    template = chat.template("<image>")

    roles = {"human": "user", "gpt": "assistant"}
    rows = json.loads((root / "train.json").read_text())
    examples = [
        {
            "images": [str(root / "images" / row["image"])],
            "messages": [
                {"role": roles[t["from"]], "content": t["value"].removeprefix("<image>\n")}
                for t in row["conversations"]
            ],
        }
        for row in rows
    ]
    data = Dataset.from_list(examples).cast_column("images", [Picture()])
    processor: Any = AutoProcessor.from_pretrained(root / "start")
    text = (
        "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%-"
        " endfor -%}"
    )
    said = f"{text}{{%- endif -%}}{{{{- '{end}\\n' -}}}}"
    assert said in template
    # TRL wants to be told in the template what is the assistant's.
    marked = template.replace(
        said,
        f"{{%- if message['role'] == 'assistant' -%}}{{% generation %}}{text}{{{{- '{end}' -}}}}{{%"
        f" endgeneration %}}{{{{- '\\n' -}}}}{{%- else -%}}{text}{{{{- '{end}\\n' -}}}}{{%- endif"
        " -%}{%- endif -%}",
    )
    processor.chat_template = processor.tokenizer.chat_template = marked
    settings = yaml.safe_load((root / "recipe.yaml").read_text())["train"]
    model: Any = AutoModelForImageTextToText.from_pretrained(
        root / "start",
        dtype=torch.bfloat16 if gpu else torch.float32,
        device_map={"": 0} if gpu else None,
        quantization_config=(
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
                llm_int8_skip_modules=[
                    "model.multi_modal_projector",
                    "model.vision_tower",
                    "lm_head",
                ],
            )
            if gpu
            else None
        ),
    )
    rank = settings["lora"]["rank"]
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=FAMILIES["phi3"].lora_pattern,
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    stage = settings["instruct"]
    args = SFTConfig(
        output_dir=str(root / "trl"),
        per_device_train_batch_size=stage["micro_batch_size"],
        learning_rate=stage["learning_rate"],
        gradient_accumulation_steps=stage["batch_size"] // stage["micro_batch_size"],
        num_train_epochs=1,
        warmup_steps=0.03,
        lr_scheduler_type="cosine",
        max_length=None,
        assistant_only_loss=True,
        gradient_checkpointing=gpu,
        bf16=gpu,
        use_cpu=not gpu,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=data, processing_class=processor, peft_config=lora
    )
    counting = trainer.data_collator = Counting(trainer.data_collator)
    started = time.monotonic()
    result = trainer.train()
    seconds = time.monotonic() - started
    losses = [
        (row["step"] / result.global_step, row["loss"])
        for row in trainer.state.log_history
        if "loss" in row
    ]
    if not gpu:  # whose loss is compared
        trainer.model.merge_and_unload().save_pretrained(root / "trl-model")
        AutoProcessor.from_pretrained(root / "start").save_pretrained(root / "trl-model")
    return {
        "tokens": counting.tokens,
        "supervised": counting.supervised,
        "seconds": seconds,
        "samples": len(rows),
        "losses": losses,
    }


class Counting:
    """A collator that counts what is no padding."""

    def __init__(self, collate: Any) -> None:
        self.collate, self.tokens, self.supervised = collate, 0, 0

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = self.collate(batch)
        self.tokens += int(made["attention_mask"].sum())
        self.supervised += int((made["labels"][:, 1:] != -100).sum())
        return made


def held_out_loss(root: Path, model: Path) -> float:
    """Loss per supervised token on conversations that neither side was trained on."""
    import torch

    from phisense.conversations import read_conversations
    from phisense.model import load_model
    from phisense.vision.image_io import open_image

    built = load_model(model, "cpu", torch.float32)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for one in read_conversations(root / "heldout.json"):
            seen = [open_image(root / "images" / name) for name in one.images]
            batch = built.inputs([one.messages], [seen]).to_kwargs()
            count = int((batch["labels"][:, 1:] != -100).sum())
            total += float(built.model(**batch).loss) * count
            tokens += count
    return total / tokens


def child(
    side: str, root: Path, changes: tuple[str, ...] = (), script: str = __file__
) -> dict[str, Any]:
    """What one side says of itself, in a process of its own that `script` is the program of."""
    out = root / "said.json"
    words = [
        sys.executable,
        script,
        "--side",
        side,
        "--root",
        str(root),
        "--out",
        str(out),
        *(w for c in changes for w in ("--set", c)),
    ]
    ran = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    if ran.returncode:
        raise SystemExit(ran.stdout + ran.stderr)
    said: dict[str, Any] = json.loads(out.read_text())
    return said


def compare(root: Path, rounds: int) -> dict[str, Any]:
    from phisense.merging import merge

    pairs = []
    for number in range(rounds):
        pair = {side: child(side, root) for side in ("ours", "trl")}
        pairs.append(pair)
        told = ", ".join(
            f"{side} {one['tokens'] / one['seconds']:.0f} tokens/s, {one['rss'] / 1e9:.2f} GB"
            for side, one in pair.items()
        )
        print(f"round {number + 1}: {told}", flush=True)
    assert len({one["tokens"] for pair in pairs for one in pair.values()}) == 1, (
        "the two sides did not read the same tokens"
    )
    model = merge(root / "runs" / "ours", device="cpu").folder
    losses = {"ours": held_out_loss(root, model), "trl": held_out_loss(root, root / "trl-model")}
    rates = {
        side: [pair[side]["tokens"] / pair[side]["seconds"] for pair in pairs]
        for side in ("ours", "trl")
    }
    ratios = [a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)]
    return {
        "ours_tokens_per_s": round(statistics.median(rates["ours"]), 1),
        "trl_tokens_per_s": round(statistics.median(rates["trl"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "rss_ratio": round(
            statistics.median(pair["ours"]["rss"] / pair["trl"]["rss"] for pair in pairs), 3
        ),
        "loss_gap": round(losses["ours"] / losses["trl"] - 1, 5),
        "held_out_loss": losses,
        "curves": {side: pairs[-1][side]["losses"] for side in ("ours", "trl")},
    }


def levers(root: Path) -> dict[str, dict[str, float]]:
    """What each lever alone is worth: processor time and memory of the epoch without it, or with
    one more, over those of ours, which comes first and last.

    Processor time, for a shared machine's neighbours disturb it less than the clock.
    """
    words = [word for change in LEVERS["pictures encoded beforehand"] for word in ("--set", change)]
    subprocess.run(
        [sys.executable, "-m", "phisense", "features", str(root / "recipe.yaml"), *words],
        check=True,
    )
    first = child("ours", root)
    less = {name: child("ours", root, changes) for name, changes in (LEVERS | ADDED).items()}
    whole = {
        key: (first[key] + last[key]) / 2
        for last in [child("ours", root)]
        for key in ("cpu", "rss")
    }
    found = {
        name: {
            "time": round(one["cpu"] / whole["cpu"], 3),
            "memory": round(one["rss"] / whole["rss"], 3),
        }
        for name, one in less.items()
    }
    for name, one in found.items():
        print(
            f"{'with' if name in ADDED else 'without'}: {name}: {one['time']:.2f} of the processor"
            f" time, {one['memory']:.2f} of the memory",
            flush=True,
        )
    return found


def plot(curves: dict[str, Any], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for side, rows in curves.items():
        axes.plot([at for at, _ in rows], [loss for _, loss in rows], label=side)
    axes.set(xlabel="share of the epoch", ylabel="training loss")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--levers", action="store_true")
    parser.add_argument("--plot", type=Path, help="write the two loss curves here")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--root", type=Path, help="keep what is made here")
    parser.add_argument("--side", choices=("ours", "trl", "start"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        said = ours(asked.root, tuple(asked.set)) if asked.side == "ours" else trl(asked.root)
        said["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        asked.out.write_text(json.dumps(said))
        return
    with tempfile.TemporaryDirectory() as spare:
        root = (asked.root or Path(spare)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "start").is_dir():
            make_parts(root, layers=8)
            make_data(root, asked.pictures)
            write_recipe(root)
            began = time.monotonic()
            words = ["--set", "features.folder=features/bench"]
            subprocess.run(
                [sys.executable, "-m", "phisense", "features", str(root / "recipe.yaml"), *words],
                check=True,
            )
            print(f"features: {time.monotonic() - began:.0f} s, once")
            start(root)
        result = compare(root, asked.rounds)
        if asked.plot:
            plot(result["curves"], asked.plot)
        del result["curves"]
        for key, value in result.items():
            print(f"{key}: {value}", flush=True)
        if asked.levers:
            result["levers"] = levers(root)
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
