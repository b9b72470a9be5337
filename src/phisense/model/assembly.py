"""`Phi3WithProjector`: a Phi-3 and a vision encoder put together by a projector, as one native transformers model.

    pictures (N, 3, S, S) --encoder--> features (N, P, D) --projector--> slots (N, P', H) --+
                                           ^ or stored features                             v
    conversation --prompt--> ids (B, T) --embedding--> (B, T, H), `<image>` rows replaced by slots --Phi-3--> logits (B, T, V)

The class is the builder, and the seam through which stored features enter; the model itself is
`LlavaForConditionalGeneration`. LLaVA cannot express 2x2 pooling, so with `pool: 2` it is
`AyaVisionForConditionalGeneration`, whose connector puts four patches side by side; its first layer begins with their average.
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
    Phi3ForCausalLM,
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..conversations import Message
from ..errors import PartError
from ..parts import MODEL_TYPES, load_half, load_weights, open_auto, resolve_part
from ..prompt import IGNORED, Prompt, Rendered, prepare_tokenizer
from ..recipe import Projector, Recipe
from ..vision.encoders import ENCODERS, image_processor, load_tower, vision_config
from .arithmetic import Arithmetic, choose
from .device import pick_device
from .projectors import average_patches, configure, fresh_projector, load_projector, make_processor, native_class, picture_slots
from .quantized import compute_in, keep_readable, nf4

Visual = Image | torch.Tensor
"""A picture, or its stored features `(P, D)`."""


class StoredFeatures(nn.Module):
    """Stands in for the vision tower in training: its "pixel values" are stored features `(N, P, D)`.

    It answers as a tower does, with hidden states that are the same in every layer, behind a class row where the model
    expects to drop one.
    """

    like: torch.Tensor

    def __init__(self, config: PreTrainedConfig, extra_rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.extra_rows = extra_rows
        # A buffer, so that it follows the model when that is cast.
        self.register_buffer("like", torch.zeros((), dtype=dtype), persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        hidden = nn.functional.pad(pixel_values.to(self.like.dtype), (0, 0, self.extra_rows, 0))
        every_layer = (hidden,) * (self.config.num_hidden_layers + 1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=every_layer)


@dataclass
class Phi3WithProjector:
    """`model` is a plain transformers model, `processor` a plain LlavaProcessor.

    `pool` is the side over which patches are averaged before the projector, other than 1 for a model of nested training only.
    `arithmetic` says what it computes in, and why, if it was opened for a step.
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
        window: int = 4096,
        quantise: bool = False,
        stored_features: bool = False,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        seed: int = 0,
        start: str | None = None,
    ) -> Phi3WithProjector:
        """Loads both parts (folders or hub ids) and puts a fresh projector between them, or that of the model folder `start`.

        A part may be a model folder: its language part or vision tower is taken.
        `quantise` loads the language part in NF4 with double quantisation; `stored_features` leaves the vision tower out.
        `dtype` defaults to what training computes in on the device. Raises PartError for parts that do not fit.
        """
        where = pick_device(device)
        dtype = dtype or choose("train", where).dtype
        language_folder, vision_folder = resolve_part(language), resolve_part(vision)
        kind = ENCODERS[encoder]
        seen = vision_config(vision_folder, encoder)
        phi = _load_language(language_folder, where, dtype, quantise)
        tokenizer = open_auto(AutoTokenizer, language_folder)
        image_id = prepare_tokenizer(tokenizer, phi.config.vocab_size)
        projector = projector or Projector()
        config = configure(projector, phi.config, seen, image_id, layer, kind.strategy)
        torch.manual_seed(seed)
        with torch.device("meta"):
            model: Any = native_class(config)(config)
        # Whole modules are put into the empty frame, so no weight is renamed, copied or quantised a second time.
        model.model.language_model = phi.model
        model.lm_head = phi.lm_head
        model.model.vision_tower = (
            StoredFeatures(seen, kind.extra_rows, dtype) if stored_features else load_tower(vision_folder, encoder, dtype)
        ).to(where)
        made = fresh_projector(model, config, projector.kind, seed)
        if start is not None:
            load_projector(made, resolve_part(start), config)
        model.model.multi_modal_projector = made.to(where, dtype)
        prompt = Prompt(tokenizer)
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=prompt.stop_ids, pad_token_id=prompt.end_of_text_id, max_new_tokens=256
        )
        processor = make_processor(image_processor(vision_folder, encoder), tokenizer, config, kind.extra_rows)
        return cls(model.eval(), processor, prompt, _window(config, window))

    @classmethod
    def from_recipe(cls, recipe: Recipe, **overrides: Any) -> Phi3WithProjector:
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

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.lm_head.weight.device
        return found

    @property
    def slots(self) -> int:
        """A picture's positions in a prompt."""
        return picture_slots(self.model.config, self.pool)

    @property
    def projector(self) -> nn.Module:
        found: nn.Module = self.model.model.multi_modal_projector
        return found

    def inputs(
        self, conversations: Sequence[Sequence[Message]], visuals: Sequence[Sequence[Visual]], *, supervised: bool = True
    ) -> dict[str, Any]:
        """Model inputs of a padded batch: ids and mask `(B, T)`, labels `(B, T)` if `supervised`, and what the pictures need.

        Each conversation has its own number of visuals, none included; pictures and stored features may be mixed. Training
        rows are padded on the right; without supervision the rows end where an answer begins, and are padded on the left.
        """
        rows = []
        for messages, seen in zip(conversations, visuals, strict=True):
            slots = [self.slots] * len(seen)
            if supervised:
                rows.append(self.prompt.render(messages, slots))
            else:
                ids = self.prompt.ask(messages, slots)
                rows.append(Rendered(ids, [IGNORED] * len(ids)))
        batch = pad_rows(rows, self.prompt.end_of_text_id, left=not supervised)
        if not supervised:
            del batch["labels"]
        batch = {key: value.to(self.device) for key, value in batch.items()}
        return {**batch, **self.look([visual for seen in visuals for visual in seen])}

    def slotted(
        self, conversations: Sequence[Sequence[Message]], slots: Sequence[Sequence[torch.Tensor]], *, supervised: bool
    ) -> dict[str, Any]:
        """As `inputs`, for pictures already projected: each `(P', H)`."""
        rows = []
        for messages, seen in zip(conversations, slots, strict=True):
            if supervised:
                rows.append(self.prompt.render(messages, [len(vectors) for vectors in seen]))
            else:
                ids = self.prompt.ask(messages, [len(vectors) for vectors in seen])
                rows.append(Rendered(ids, [IGNORED] * len(ids)))
        batch: dict[str, Any] = {k: v.to(self.device) for k, v in pad_rows(rows, self.prompt.end_of_text_id, left=not supervised).items()}
        whole = [vectors.to(self.device) for seen in slots for vectors in seen]
        return {**batch, **({"mm_encoder_outputs": self.projected(whole)} if whole else {})}

    @torch.inference_mode()
    def answer(
        self, conversations: Sequence[Sequence[Message]], slots: Sequence[Sequence[torch.Tensor]], *, max_new_tokens: int
    ) -> list[str]:
        """Greedy answers of one batch, its pictures already projected."""
        batch = self.slotted(conversations, slots, supervised=False)
        del batch["labels"]
        made = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        return [self.prompt.decode(self.prompt.until_stop(row.tolist())) for row in made[:, batch["input_ids"].shape[1] :]]

    def look(self, visuals: Sequence[Visual]) -> dict[str, Any]:
        """The keyword arguments that carry `visuals` into the model: none, pixels, stored features, or projected slots."""
        if not visuals:
            return {}
        if isinstance(self.model.model.vision_tower, StoredFeatures):
            # In float32: a CPU's autocast cannot put float16 tensors together, and the stand-in casts them anyway.
            stacked = torch.stack([visual.float() for visual in visuals if isinstance(visual, torch.Tensor)])
            assert len(stacked) == len(visuals), "a model without a vision tower reads stored features only"
            return {"pixel_values": stacked.to(self.device)}
        return {"mm_encoder_outputs": self.projected(self.project(visuals))}

    def projected(self, slots: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Slots of pictures, each `(P', H)`, as the model's `mm_encoder_outputs`."""
        whole: Any = torch.stack(list(slots)) if self.model.config.model_type == "aya_vision" else list(slots)
        return {"image": BaseModelOutputWithPooling(pooler_output=whole)}

    def project(self, visuals: Sequence[Visual]) -> list[torch.Tensor]:
        """Each picture, or its stored features `(P, D)`, as it enters the language part: `(P', H)`."""
        found: dict[int, torch.Tensor] = {}
        pictures = {i: visual for i, visual in enumerate(visuals) if not isinstance(visual, torch.Tensor)}
        stored = {i: visual for i, visual in enumerate(visuals) if isinstance(visual, torch.Tensor)}
        if pictures:
            pixels = self.processor.image_processor(list(pictures.values()), return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self.device, self.model.lm_head.weight.dtype)
            if self.pool == 1:
                found.update(zip(pictures, self._image_features(pixels), strict=True))
            else:
                stored |= dict(zip(pictures, self._patches(pixels), strict=True))
        if stored:
            features = average_patches(torch.stack([one.to(self.device).float() for one in stored.values()]), self.pool)
            tower = self.model.model.vision_tower
            stand_in = StoredFeatures(self.model.config.vision_config, _extra_rows(self.model.config), self.model.lm_head.weight.dtype)
            self.model.model.vision_tower = stand_in.to(self.device)
            try:
                found.update(zip(stored, self._image_features(features), strict=True))
            finally:
                self.model.model.vision_tower = tower
        return [found[i] for i in range(len(visuals))]

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the tower makes of pictures, `(N, P, D)`, before the projector."""
        config = self.model.config
        hidden = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
        found: torch.Tensor = hidden[:, _extra_rows(config) :]
        return found

    def _image_features(self, pixels: torch.Tensor) -> Any:
        return self.model.get_image_features(pixel_values=pixels.to(self.device), return_dict=True).pooler_output


def pad_rows(rows: Sequence[Rendered], pad: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Rendered rows -> `input_ids`, `attention_mask`, `labels`, each `(B, T)` with T the longest row."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, row in enumerate(rows):
        span = slice(longest - len(row.ids), longest) if left else slice(0, len(row.ids))
        ids[i, span] = torch.tensor(row.ids)
        mask[i, span] = 1
        labels[i, span] = torch.tensor(row.labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _extra_rows(config: PreTrainedConfig) -> int:
    return 1 if config.vision_feature_select_strategy == "default" else 0


def _load_language(folder: Path, device: torch.device, dtype: torch.dtype, quantise: bool) -> Any:
    whole = open_auto(AutoConfig, folder)
    config = whole.text_config if whole.model_type in MODEL_TYPES else whole
    if config.model_type != "phi3":
        raise PartError(f"the language part {folder} is no Phi-3", got=config.model_type, wanted="phi3", do="Use a Phi-3 or Phi-3.5 model")
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if quantise:
        options["dtype"] = torch.float32  # what is quantised are the stored numbers: a cast before would change the codes
        options["quantization_config"] = nf4(dtype)
    if config is whole:
        phi = load_weights(Phi3ForCausalLM, folder, **options)
    else:
        phi = load_half(Phi3ForCausalLM, folder, "language_model", config, **options)
    if quantise:  # how it is held in memory here is no property of the model: a merged folder must not claim it
        del phi.config.quantization_config
        compute_in(phi, dtype)
        keep_readable(phi)
    return phi


def _window(config: PreTrainedConfig, asked: int) -> int:
    text = config.text_config
    return int(min(asked, getattr(text, "original_max_position_embeddings", None) or 4096, text.max_position_embeddings))
