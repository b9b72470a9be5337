"""The shapes behind a plan, from the parts' configurations alone: no weights are read or allocated.

The modules are built on the meta device and their parameters are counted, instead of repeating
formulas. A hub id that is not on this disk uses its family's configuration or that in `known/`, and
`notes` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig

from ..errors import PartError
from ..families import FAMILIES, context_window, family_of_config
from ..model.projectors.config import make_config, native_class
from ..model.projectors.image_tokens import count_image_tokens
from ..opening import PROCESSOR_FILES
from ..opening.registered import composite_model_types
from ..parts import load_auto, split_revision
from ..recipe import Projector, Recipe, Vision
from ..vision.encoders.base import ENCODERS
from ..vision.encoders.loading import num_patches, vision_config

_KNOWN = Path(__file__).parent / "known"
KNOWN = {
    "openai/clip-vit-large-patch14-336": "clip-l-336",
}


@dataclass(frozen=True, slots=True)
class Shapes:
    """Widths and counts. A matrix is `(inputs, outputs)`; weight counts are in scalars."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    window: int  # tokens
    matrices: tuple[tuple[int, int], ...]  # of one layer: those that LoRA and NF4 apply to
    embeddings: int
    output: int
    norms: int
    projector: int
    projector_linears: tuple[tuple[int, int], ...]
    patches: int
    image_tokens: int
    width: int
    vision: int
    vision_layers: int
    vision_read: int  # of them, those that the projector's input passes through
    vision_heads: int
    vision_mlp: int
    head_norms: bool = False  # queries and keys are normalized, head by head
    stored: str | None = None  # number format of the language part's file, as its config says
    notes: tuple[str, ...] = ()

    @property
    def matrix_weights(self) -> int:
        """Weights of the matrices of all layers."""
        return self.layers * sum(a * b for a, b in self.matrices)

    @property
    def language(self) -> int:
        """Weights of the whole language model."""
        return self.matrix_weights + self.embeddings + self.output + self.norms

    def lora(self, rank: int) -> int:
        """Weights of the adapter: `rank * (inputs + outputs)` per matrix (Hu et al. 2021,
        arXiv:2106.09685).
        """
        return self.layers * sum(rank * (a + b) for a, b in self.matrices)

    def vision_lora(self, rank: int) -> int:
        """LoRA weights of the vision tower: four square matrices and two of the MLP, in each used
        layer.
        """
        return self.vision_read * rank * (4 * 2 * self.width + 2 * (self.width + self.vision_mlp))

    @property
    def vision_matrices(self) -> int:
        """Weights of the matrices in the used layers of the vision tower."""
        return self.vision_read * (4 * self.width**2 + 2 * self.width * self.vision_mlp)


def read_shapes(recipe: Recipe) -> Shapes:
    """Read the shapes of a recipe's parts. Raises PartError for a part whose configuration is
    neither on disk nor known, or that is of the wrong kind.
    """
    text, text_note = _text_config(recipe.language.part)
    seen, seen_note = _vision_config(recipe.vision)
    kind = ENCODERS[recipe.vision.encoder]
    family = family_of_config(text, part=recipe.language.part)
    with torch.device("meta"):
        language: Any = family.load_class()(text)
        tower: Any = kind.model_class()(seen)
        projector, image_tokens = _projector(
            recipe.projector, text, seen, recipe.vision.layer, kind.strategy
        )
    matrices = tuple(
        (m.in_features, m.out_features)
        for m in language.model.layers[0].modules()
        if isinstance(m, nn.Linear)
    )
    of_matrices = len(language.model.layers) * sum(a * b for a, b in matrices)
    embeddings, output = _count(language.model.embed_tokens), _count(language.lm_head)
    if language.lm_head.weight is language.model.embed_tokens.weight:
        embeddings = 0  # one matrix for both: it counts where it computes
    return Shapes(
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head=language.model.layers[0].self_attn.head_dim,
        vocabulary=text.vocab_size,
        window=context_window(text),
        matrices=matrices,
        embeddings=embeddings,
        output=output,
        norms=_count(language) - of_matrices - embeddings - output,
        projector=_count(projector),
        projector_linears=tuple(
            (m.in_features, m.out_features) for m in projector.modules() if isinstance(m, nn.Linear)
        ),
        patches=num_patches(seen),
        image_tokens=image_tokens,
        width=seen.hidden_size,
        vision=_count(tower),
        vision_layers=seen.num_hidden_layers,
        vision_read=seen.num_hidden_layers + 1 + recipe.vision.layer,
        vision_heads=seen.num_attention_heads,
        vision_mlp=getattr(seen, "intermediate_size", None) or seen.hidden_size * seen.mlp_ratio,
        head_norms=hasattr(language.model.layers[0].self_attn, "q_norm"),
        stored=None if text.dtype is None else str(text.dtype).removeprefix("torch."),
        notes=tuple(note for note in (text_note, seen_note) if note),
    )


def config_folder(part: str) -> Path | None:
    """The local folder with a part's config.json: its own, or in the hub cache; None if there is
    none.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(part).expanduser()
    if (folder / "config.json").is_file():
        return folder
    try:
        name, revision = split_revision(part)
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _text_config(part: str) -> tuple[Any, str]:
    """The configuration of a language part, which may be a model folder, and a note."""
    folder = config_folder(part)
    if folder is not None:
        config = load_auto(AutoConfig, folder)
        return (config.text_config if config.model_type in composite_model_types() else config), ""
    languages = {
        hub: known for one in FAMILIES.values() for hub, known in one.known_configs.items()
    }
    known = languages.get(split_revision(part)[0])
    if known is None:
        raise _unknown(part, tuple(languages))
    return CONFIG_MAPPING[known["model_type"]].from_dict(dict(known)), _known_note(part)


def _vision_config(vision: Vision) -> tuple[Any, str]:
    """The configuration of a vision part for images of the size that it will read, and a note."""
    folder, note = config_folder(vision.part), ""
    if folder is None:
        known = KNOWN.get(split_revision(vision.part)[0])
        if known is None:
            raise _unknown(vision.part, tuple(KNOWN))
        folder, note = _KNOWN / known, _known_note(vision.part)
    config = vision_config(folder, vision.encoder, vision.size)
    if vision.size is None and not note and not _says_how_it_prepares(folder):
        note = (
            f"{vision.part} has no preprocessor_config.json on this disk: planned for images of"
            f" {config.image_size} pixels, as its config.json says"
        )
    return config, note


def _says_how_it_prepares(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES)


def _known_note(part: str) -> str:
    return f"{part} is not on this disk: planned from its known shapes"


def _unknown(part: str, known: tuple[str, ...]) -> PartError:
    return PartError(
        f"nothing can be planned for the part {part}",
        got="no config.json on this disk",
        wanted=f"a folder with a config.json, or one of {', '.join(known)}",
        do="Download its config.json",
    )


def _projector(
    projector: Projector, text: Any, seen: Any, layer: int, strategy: str
) -> tuple[nn.Module, int]:
    """The native projector of these parts, and its number of tokens per image."""
    config = make_config(projector, text, seen, 0, layer, strategy)
    whole: Any = native_class(config)(config)
    made: nn.Module = whole.model.multi_modal_projector
    return made, count_image_tokens(config)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
