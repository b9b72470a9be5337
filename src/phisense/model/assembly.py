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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

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
from ..prompt import IGNORE_INDEX, Prompt, Rendered, prepare_tokenizer
from ..recipe import Projector, Recipe
from ..vision.encoders.base import ENCODERS
from ..vision.encoders.loading import build_image_processor, load_vision_tower, vision_config
from .arithmetic import Arithmetic, choose_arithmetic
from .device import pick_device
from .projectors.base import native_model
from .projectors.config import make_config, make_processor, native_class
from .projectors.image_tokens import average_patches, count_image_tokens
from .projectors.weights import fresh_projector, load_projector
from .quantized import forbid_repacking, nf4_config, set_compute_dtype

Visual = Image | torch.Tensor
"""A picture, or its stored features `(P, D)`."""


class StoredFeatures(nn.Module):
    """Replaces the vision tower in training: its "pixel values" are stored features `(N, P, D)`.

    It returns what a tower returns: the same hidden states for every layer, preceded by a class row
    where the model expects to drop one.
    """

    like: torch.Tensor

    def __init__(self, config: PreTrainedConfig, extra_rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.extra_rows = extra_rows
        # A buffer, so that it is cast and moved with the model.
        self.register_buffer("like", torch.zeros((), dtype=dtype), persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Stored features `(N, P, D)` -> the output of a vision tower, with identical hidden states
        for every layer.
        """
        hidden = nn.functional.pad(pixel_values.to(self.like.dtype), (0, 0, self.extra_rows, 0))
        every_layer = (hidden,) * (self.config.num_hidden_layers + 1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=every_layer)


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
        window: int = DEFAULT_WINDOW,
        quantize: bool = False,
        stored_features: bool = False,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        start: str | None = None,
    ) -> Phi3WithProjector:
        """Load both parts (folders or Hub ids) and join them with a fresh projector, or with that
        of the model folder `start`.

        A part may be a model folder: its language part or vision tower is taken. `quantize` loads
        the language part in NF4 with double quantization; `stored_features` leaves the vision tower
        out. `dtype` defaults to the training dtype of the device. Raises PartError for parts that
        do not fit.
        """
        where = pick_device(device)
        dtype = dtype or choose_arithmetic("train", where).dtype
        language_folder, vision_folder = resolve_part(language), resolve_part(vision)
        kind = ENCODERS[encoder]
        seen = vision_config(vision_folder, encoder)
        text = load_language(language_folder, where, dtype, quantize)
        projector = projector or Projector()
        built = cls._meta_model(
            text.config, language_folder, vision_folder, projector, encoder, layer, window
        )
        model, config = built.model, built.model.config
        # Whole modules replace those of the empty model, so no weight is renamed, copied or
        # quantized a second time.
        model.model.language_model = text.model
        model.lm_head = text.lm_head
        model.model.vision_tower = (
            StoredFeatures(seen, kind.extra_rows, dtype)
            if stored_features
            else load_vision_tower(vision_folder, encoder, dtype)
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
        window: int,
    ) -> Phi3WithProjector:
        """The native model on the meta device, with its tokenizer and processor."""
        kind = ENCODERS[encoder]
        seen = vision_config(vision, encoder)
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
            build_image_processor(vision, encoder), tokenizer, config, kind.extra_rows
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
    ) -> dict[str, Any]:
        """Model inputs of a padded batch: ids and mask `(B, T)`, labels `(B, T)` if `supervised`,
        and the image inputs.

        Each conversation has its own number of visuals, possibly none; images and stored features
        may be mixed. Supervised rows are padded on the right; unsupervised rows end where the
        answer begins, and are padded on the left.
        """
        rows = []
        for messages, seen in zip(conversations, visuals, strict=True):
            image_tokens = [self.image_tokens] * len(seen)
            if supervised:
                rows.append(self.prompt.render_conversation(messages, image_tokens))
            else:
                ids = self.prompt.render_for_completion(messages, image_tokens)
                rows.append(Rendered(ids, [IGNORE_INDEX] * len(ids)))
        batch = pad_rows(rows, self.prompt.end_of_text_id, left=not supervised)
        if not supervised:
            del batch["labels"]
        batch = {key: value.to(self.device) for key, value in batch.items()}
        return {**batch, **self.image_inputs([visual for seen in visuals for visual in seen])}

    def inputs_from_embeds(
        self,
        conversations: Sequence[Sequence[Message]],
        image_embeds: Sequence[Sequence[torch.Tensor]],
        *,
        supervised: bool,
    ) -> dict[str, Any]:
        """As `inputs`, for images that are already projected: each `(P', H)`."""
        rows = []
        for messages, seen in zip(conversations, image_embeds, strict=True):
            if supervised:
                rows.append(
                    self.prompt.render_conversation(messages, [len(vectors) for vectors in seen])
                )
            else:
                ids = self.prompt.render_for_completion(
                    messages, [len(vectors) for vectors in seen]
                )
                rows.append(Rendered(ids, [IGNORE_INDEX] * len(ids)))
        batch: dict[str, Any] = {
            k: v.to(self.device)
            for k, v in pad_rows(rows, self.prompt.end_of_text_id, left=not supervised).items()
        }
        whole = [vectors.to(self.device) for seen in image_embeds for vectors in seen]
        return {
            **batch,
            **({"mm_encoder_outputs": self.as_encoder_outputs(whole)} if whole else {}),
        }

    @torch.inference_mode()
    def generate_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        image_embeds: Sequence[Sequence[torch.Tensor]],
        *,
        max_new_tokens: int,
    ) -> list[str]:
        """Greedy answers for one batch whose images are already projected."""
        batch = self.inputs_from_embeds(conversations, image_embeds, supervised=False)
        del batch["labels"]
        made = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        return [
            self.prompt.decode(self.prompt.truncate_at_stop(row.tolist()))
            for row in made[:, batch["input_ids"].shape[1] :]
        ]

    def image_inputs(self, visuals: Sequence[Visual]) -> dict[str, Any]:
        """The keyword arguments that pass `visuals` to the model: none, stored features, or
        projected image embeddings.
        """
        if not visuals:
            return {}
        if isinstance(self.model.model.vision_tower, StoredFeatures):
            # In float32: autocast on CPUs cannot concatenate float16 tensors, and StoredFeatures
            # casts them anyway.
            stacked = torch.stack(
                [visual.float() for visual in visuals if isinstance(visual, torch.Tensor)]
            )
            assert len(stacked) == len(visuals), (
                "a model without a vision tower reads stored features only"
            )
            return {"pixel_values": stacked.to(self.device)}
        return {"mm_encoder_outputs": self.as_encoder_outputs(self.project(visuals))}

    def as_encoder_outputs(self, image_embeds: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Image embeddings, each `(P', H)`, as the model's `mm_encoder_outputs`."""
        whole: Any = (
            torch.stack(list(image_embeds))
            if native_model(self.model.config).stacks_images
            else list(image_embeds)
        )
        return {"image": BaseModelOutputWithPooling(pooler_output=whole)}

    def project(self, visuals: Sequence[Visual]) -> list[torch.Tensor]:
        """Encode and project each image, or its stored features `(P, D)`, to the image embeddings
        `(P', H)` of the language part.
        """
        found: dict[int, torch.Tensor] = {}
        pictures = {
            i: visual for i, visual in enumerate(visuals) if not isinstance(visual, torch.Tensor)
        }
        stored = {i: visual for i, visual in enumerate(visuals) if isinstance(visual, torch.Tensor)}
        if pictures:
            pixels = self.processor.image_processor(list(pictures.values()), return_tensors="pt")[
                "pixel_values"
            ]
            pixels = pixels.to(self.device, self.model.lm_head.weight.dtype)
            if self.pool == 1:
                found.update(zip(pictures, self._image_features(pixels), strict=True))
            else:
                stored |= dict(zip(pictures, self._patches(pixels), strict=True))
        if stored:
            features = average_patches(
                torch.stack([one.to(self.device).float() for one in stored.values()]), self.pool
            )
            tower = self.model.model.vision_tower
            stand_in = StoredFeatures(
                self.model.config.vision_config,
                _extra_rows(self.model.config),
                self.model.lm_head.weight.dtype,
            )
            self.model.model.vision_tower = stand_in.to(self.device)
            try:
                found.update(zip(stored, self._image_features(features), strict=True))
            finally:
                self.model.model.vision_tower = tower
        return [found[i] for i in range(len(visuals))]

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """The tower's features of images, `(N, P, D)`, before the projector."""
        config = self.model.config
        hidden = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[
            config.vision_feature_layer
        ]
        found: torch.Tensor = hidden[:, _extra_rows(config) :]
        return found

    def _image_features(self, pixels: torch.Tensor) -> Any:
        return self.model.get_image_features(
            pixel_values=pixels.to(self.device), return_dict=True
        ).pooler_output


def pad_rows(rows: Sequence[Rendered], pad: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Rendered rows -> `input_ids`, `attention_mask`, `labels`, each `(B, T)`, where T is the
    longest row.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE_INDEX)
    for i, row in enumerate(rows):
        span = slice(longest - len(row.ids), longest) if left else slice(0, len(row.ids))
        ids[i, span] = torch.tensor(row.ids)
        mask[i, span] = 1
        labels[i, span] = torch.tensor(row.labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def make_generation_config(prompt: Prompt) -> GenerationConfig:
    """Greedy decoding up to one of the prompt's stop tokens."""
    return GenerationConfig(
        do_sample=False,
        eos_token_id=prompt.stop_ids,
        pad_token_id=prompt.end_of_text_id,
        max_new_tokens=256,
    )


def _extra_rows(config: PreTrainedConfig) -> int:
    return 1 if config.vision_feature_select_strategy == "default" else 0


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
    return language
