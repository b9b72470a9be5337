"""`Phi3WithProjector`: a language model and a vision encoder joined by a projector, as one native
transformers model.

    images (N, 3, S, S) --encoder--> features (N, P, D) --projector--> image tokens (N, P', H) --+
                                         ^ or stored features                                    v
    conversation --prompt--> ids (B, T) --embedding--> (B, T, H), `<image>` rows replaced by them
    --language model--> logits (B, T, V)

The class builds the model and is the place where stored features enter; the model itself is
`LlavaForConditionalGeneration`. LLaVA cannot express 2x2 pooling, so with `pool: 2` it is
`AyaVisionForConditionalGeneration`, whose connector concatenates four patches; its first layer is
initialized to their average.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)

from ..chat_tokenizer import prepare_tokenizer
from ..conversations import Message
from ..families import (
    DEFAULT_WINDOW,
    WINDOW_KEY,
    check_same_family,
    context_window,
    family_of_config,
)
from ..opening.registered import composite_model_types
from ..parts import load_auto, load_submodel, load_weights, resolve_part
from ..prompt import Prompt
from ..recipe import Projector, Recipe
from ..vision.encoders.base import ENCODERS
from ..vision.encoders.loading import build_image_processor, load_vision_tower, vision_config
from .adapter_beside import has_beside
from .arithmetic import Arithmetic, choose_arithmetic
from .device import pick_device
from .inputs import (
    ModelInputs,
    StoredFeatures,
    Visual,
    pad_prompts,
    pad_rows,
    project,
    splice_images,
    stack_features,
)
from .projectors.config import make_config, make_processor, native_class
from .projectors.image_tokens import count_image_tokens
from .projectors.weights import fresh_projector, load_projector
from .quantized import forbid_repacking, nf4_config, set_compute_dtype
from .sharded_language import outline_language
from .tied_head import match_config_to_head

_logger = logging.getLogger(__name__)


@dataclass
class Phi3WithProjector:
    """`model` is a plain transformers model, `processor` a plain LlavaProcessor.

    `pool` is the side of the squares over which patches are averaged before the projector; only a
    model with nested training has one other than 1. `arithmetic` is the dtype and kernels chosen,
    with the reason, if the model was loaded for a step.
    """

    model: Any
    processor: Any
    prompt: Prompt
    window: int
    pool: int = 1
    arithmetic: Arithmetic | None = None

    @classmethod
    def assemble(
        cls,
        language: str,
        vision: str,
        projector: Projector | None = None,
        *,
        encoder: str = "clip",
        layer: int = -2,
        size: int | None = None,
        window: int = DEFAULT_WINDOW,
        quantize: bool = False,
        stored_features: bool = False,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        start: str | None = None,
        outlined: bool = False,
    ) -> Phi3WithProjector:
        """Load both parts (folders or Hub ids) and join them with a fresh projector, or with that
        of the model folder `start`.

        A part may be a model folder: its language part or vision tower is taken. `quantize` loads
        the language part in NF4 with double quantization; `stored_features` leaves the vision tower
        out; `size` is the side of the images in pixels, None for what the vision part says.
        `dtype` defaults to the training dtype of the device. `outlined` leaves the language part
        without weights, for sharded_language.py. Raises PartError for parts that do not fit.
        """
        where = pick_device(device)
        dtype = dtype or choose_arithmetic("train", where).dtype
        language_folder, vision_folder = resolve_part(language), resolve_part(vision)
        kind = ENCODERS[encoder]
        seen = vision_config(vision_folder, encoder, size)
        if outlined:
            text = outline_language(language_folder, language_config(language_folder), where, dtype)
        else:
            text = load_language(language_folder, where, dtype, quantize)
        projector = projector or Projector()
        built = cls._meta_model(
            text.config, language_folder, vision_folder, projector, encoder, layer, size, window
        )
        model, config = built.model, built.model.config
        # Whole modules replace those of the empty model, so no weight is renamed, copied or
        # quantized a second time.
        model.model.language_model = text.model
        model.lm_head = text.lm_head
        model.model.vision_tower = (
            StoredFeatures(seen, kind.extra_rows, dtype)
            if stored_features
            else load_vision_tower(vision_folder, encoder, dtype, size)
        ).to(where)
        made = fresh_projector(model, config, projector.kind, seed)
        if start is not None:
            load_projector(made, resolve_part(start), config)
        model.model.multi_modal_projector = made.to(where, dtype)
        return built

    @classmethod
    def from_recipe(cls, recipe: Recipe, **overrides: Any) -> Phi3WithProjector:
        """Assemble the parts that a recipe names; `overrides` replace arguments of `assemble`.

        Raises PartError.
        """
        return cls.assemble(
            recipe.language.part,
            recipe.vision.part,
            recipe.projector,
            encoder=recipe.vision.encoder,
            layer=recipe.vision.layer,
            size=recipe.vision.size,
            window=recipe.language.window,
            seed=recipe.seed,
            start=recipe.start,
            **overrides,
        )

    @classmethod
    def meta_from_recipe(cls, recipe: Recipe) -> Phi3WithProjector:
        """Build what `from_recipe` builds from the parts' configurations alone, on the meta device:
        shapes without memory.

        Raises PartError for parts that do not fit.
        """
        language, vision = resolve_part(recipe.language.part), resolve_part(recipe.vision.part)
        text = language_config(language)
        return cls._meta_model(
            text,
            language,
            vision,
            recipe.projector,
            recipe.vision.encoder,
            recipe.vision.layer,
            recipe.vision.size,
            recipe.language.window,
        )

    @classmethod
    def _meta_model(
        cls,
        text: PreTrainedConfig,
        language: Path,
        vision: Path,
        projector: Projector,
        encoder: str,
        layer: int,
        size: int | None,
        window: int,
    ) -> Phi3WithProjector:
        """The native model on the meta device, with its tokenizer and processor."""
        kind = ENCODERS[encoder]
        seen = vision_config(vision, encoder, size)
        tokenizer = load_auto(AutoTokenizer, language)
        image_id = prepare_tokenizer(tokenizer, text.vocab_size)
        check_same_family(text, tokenizer, language)
        config = make_config(projector, text, seen, image_id, layer, kind.strategy)
        if window < context_window(config):
            setattr(config, WINDOW_KEY, window)  # so that every consumer of the folder respects it
        with torch.device("meta"):
            model: Any = native_class(config)(config)
        prompt = Prompt(tokenizer)
        model.generation_config = make_generation_config(prompt)
        processor = make_processor(
            build_image_processor(vision, encoder, size), tokenizer, config, kind.extra_rows
        )
        return cls(model.eval(), processor, prompt, context_window(config))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        found: torch.device = self.model.lm_head.weight.device
        return found

    @property
    def image_tokens(self) -> int:
        """Number of prompt positions that one image takes."""
        return count_image_tokens(self.model.config, self.pool)

    @property
    def projector(self) -> nn.Module:
        """The projector module of the native model."""
        found: nn.Module = self.model.model.multi_modal_projector
        return found

    def inputs(
        self,
        conversations: Sequence[Sequence[Message]],
        visuals: Sequence[Sequence[Visual]],
        *,
        supervised: bool = True,
    ) -> ModelInputs:
        """A padded batch of conversations on the model's device, each with its own number of
        images or stored features, possibly none.

        Supervised rows have labels and are padded on the right; unsupervised ones end where the
        answer begins, have none, and are padded on the left. A model that reads stored features
        gets them as `pixel_values`, any other the embeddings of ids and images.
        """
        counts = [[self.image_tokens] * len(seen) for seen in visuals]
        pad_id, prompt = self.prompt.end_of_text_id, self.prompt
        asked = list(zip(conversations, counts, strict=True))
        batch = (
            pad_rows([prompt.render_conversation(*one) for one in asked], pad_id)
            if supervised
            else pad_prompts([prompt.render_for_completion(*one) for one in asked], pad_id)
        ).to(self.device)
        flat = [visual for seen in visuals for visual in seen]
        if not flat:
            return batch
        if isinstance(self.model.model.vision_tower, StoredFeatures):
            features = [visual for visual in flat if isinstance(visual, torch.Tensor)]
            assert len(features) == len(flat), (
                "a model without a vision tower reads stored features only"
            )
            return replace(batch, pixel_values=stack_features(features).to(self.device))
        return replace(batch, inputs_embeds=self.embed(batch.input_ids, self.project(flat)))

    def embed(
        self, input_ids: torch.Tensor, image_embeds: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Input embeddings `(..., T, H)` of ids `(..., T)`, with the image embeddings, each
        `(P', H)`, at the `<image>` ids.
        """
        table = self.model.get_input_embeddings()
        return splice_images(table(input_ids), input_ids, self.prompt.image_id, image_embeds)

    def project(self, visuals: Sequence[Visual]) -> list[torch.Tensor]:
        """Encode and project each image, or its stored features `(P, D)`, to the image embeddings
        `(P', H)` of the language part.
        """
        return project(self.model, self.processor.image_processor, visuals, pool=self.pool)


def make_generation_config(prompt: Prompt) -> GenerationConfig:
    """Greedy decoding up to one of the prompt's stop tokens."""
    return GenerationConfig(
        do_sample=False,
        eos_token_id=prompt.stop_ids,
        pad_token_id=prompt.end_of_text_id,
        max_new_tokens=256,
    )


def language_config(folder: Path) -> Any:
    """Configuration of the language part of a folder, which may be a model folder.

    Raises PartError if it is of no known language family.
    """
    return _language_configs(folder)[1]


def _language_configs(folder: Path) -> tuple[Any, Any]:
    """The folder's full configuration and the language part's within it; both are the same for a
    text-only folder.
    """
    whole = load_auto(AutoConfig, folder)
    config = whole.text_config if whole.model_type in composite_model_types() else whole
    family_of_config(config, part=folder)
    return whole, config


def load_language(folder: Path, device: torch.device, dtype: torch.dtype, quantize: bool) -> Any:
    """Load the language part of a folder, or of a model folder, computing in `dtype`.

    4-bit codes are quantized from the stored weights, whatever `dtype` is. Raises PartError if it
    is of no known language family or cannot be loaded.
    """
    whole, config = _language_configs(folder)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if quantize and has_beside(folder):
        _logger.warning(
            "%s was merged from an adapter on a base in 4 bits: quantized again, its language part"
            " loses most of what that adapter learned. train.quantize=false keeps it",
            folder.name,
        )
    if quantize:
        # the stored weights are quantized: a cast before it would change the codes
        options["dtype"] = torch.float32
        options["quantization_config"] = nf4_config(dtype)
    model_class = family_of_config(config).load_class()
    if config is whole:
        language = load_weights(model_class, folder, **options)
    else:
        language = load_submodel(model_class, folder, "language_model", config, **options)
    # quantization in memory is no property of the model: a merged folder must not claim it
    if quantize:
        del language.config.quantization_config
        set_compute_dtype(language, dtype)
        forbid_repacking(language)
    match_config_to_head(language, folder)
    return language
