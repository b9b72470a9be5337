"""LLaVA-format folders as others write them, made from ours: other names, other classes, other
files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from phisense import artifacts
from phisense.model import Phi3WithProjector, save_model

from ..tiny import make_language, make_vision

Weights = dict[str, torch.Tensor]


def make_whole(folder: Path, *, encoder: str = "clip", dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model folder with weights large enough that what it reads shows in its logits."""
    make_language(folder / "language")
    make_vision(folder / "vision", encoder=encoder)
    built = Phi3WithProjector.assemble(
        str(folder / "language"),
        str(folder / "vision"),
        encoder=encoder,
        device="cpu",
        dtype=torch.float32,
    )
    for name, weight in built.model.named_parameters():
        if name.endswith(
            (
                "qkv_proj.weight",
                "o_proj.weight",
                "lm_head.weight",
                "embed_tokens.weight",
                "gate_up_proj.weight",
            )
        ):
            weight.data.mul_(12)
    built.model.to(dtype)
    with artifacts.staged_artifact(folder / "model", kind="model folder") as aside:
        save_model(built, aside)
    return folder / "model"


def edit(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def plain(model: Path, out: Path, *, new: bool = False, vision_model: bool = True) -> Path:
    """As llava-hf publishes: no manifest, a picture processor in a file of its own, and old names
    of weights, or `new` ones.
    """
    shutil.copytree(model, out)
    for name in ("manifest.json", "merge_report.json", "chat_template.jinja"):
        (out / name).unlink(missing_ok=True)
    processor = json.loads((out / "processor_config.json").read_text())
    images = processor.pop("image_processor") | {
        "image_processor_type": "CLIPImageProcessor",
        "do_pad": False,
    }
    (out / "preprocessor_config.json").write_text(
        json.dumps(images | {"processor_class": "LlavaProcessor"})
    )
    (out / "processor_config.json").unlink()
    config = json.loads((out / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (out / "config.json").write_text(json.dumps(config))

    def rename(weights: Weights) -> Weights:
        found = {}
        for name, weight in weights.items():
            name = name.removeprefix("model.").replace(
                "vision_tower.vision_model.", "vision_tower."
            )
            name = re.sub(r"^language_model\.(?:model\.)?", "language_model.", name).replace(
                "language_model.lm_head", "lm_head"
            )
            name = (
                re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
                if vision_model
                else name
            )
            if new:
                name = name if name.startswith("lm_head") else f"model.{name}"
            else:
                name = name.replace("language_model.", "language_model.model.").replace(
                    "lm_head.", "language_model.lm_head."
                )
            found[name] = weight
        return found

    return edit(out, rename)


def llama(model: Path, out: Path) -> Path:
    """As xtuner/llava-phi-3-mini-hf: Phi-3's matrices cut into a Llama's, `<pad>` behind `<image>`,
    no chat template.
    """
    plain(model, out)
    config = json.loads((out / "config.json").read_text())
    text = config["text_config"]
    left = ("embd_pdrop", "resid_pdrop", "rope_parameters", "pad_token_id", "eos_token_id")
    config["text_config"] = {key: value for key, value in text.items() if key not in left} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "sliding_window": 47,
        "attention_bias": False,
        "rope_scaling": None,
    }
    config["pad_token_id"] = config["image_token_index"] + 1
    (out / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    like = next(one for one in tokenizer["added_tokens"] if one["content"] == "<image>")
    tokenizer["added_tokens"].append({**like, "content": "<pad>", "id": like["id"] + 1})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(out / "tokenizer_config.json", pad_token="<pad>", chat_template=None)

    def cut(weights: Weights) -> Weights:
        found = {}
        for name, weight in weights.items():
            if "qkv_proj" in name:
                found |= {
                    name.replace("qkv", one): piece
                    for one, piece in zip("qkv", weight.chunk(3), strict=True)
                }
            elif "gate_up_proj" in name:
                found |= {
                    name.replace("gate_up", one): piece
                    for one, piece in zip(("gate", "up"), weight.chunk(2), strict=True)
                }
            else:
                found[name] = weight
        return found

    return edit(out, cut)


def adapter(
    base: Path, out: Path, targets: list[str] | str, *, projector: bool = True, **options: Any
) -> Path:
    """What PEFT saves of an adapter on the model in `base` whose every weight was trained a
    little.
    """
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    saved = ["multi_modal_projector"] if projector else None
    made = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved, **options),
    )
    for name, weight in made.named_parameters():
        if "lora_B" in name or (projector and "modules_to_save" in name):
            weight.data.add_(torch.randn_like(weight) * 0.1)
    made.save_pretrained(out)
    edit_json(out / "adapter_config.json", base_model_name_or_path=str(base))
    return out
