"""Inputs of the native model: images become image embeddings, conversations become padded batches.

    images (N, 3, S, S) --vision tower--> features (N, P, D) --projector--> embeddings (N, P', H)
                                             ^ or stored ones                        |
    rows of token ids --pad_rows--> (B, T) --embedding--> (B, T, H) --splice_images--+--> (B, T, H)

N images of P patches, B rows of T tokens; P' is the number of image tokens of one image, of which
each row has as many `<image>` ids. In training the native model does all of this itself, from
`pixel_values`, so that a trainer cannot bypass the projector; `StoredFeatures` is then its vision
tower. Both ways give the same embeddings to the bit (tests/model/test_inputs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..prompt import IGNORE_INDEX
from .projectors.image_tokens import average_patches

Visual = Image | torch.Tensor
"""An image, or its stored features `(P, D)`."""


class TokenRow(Protocol):
    """Token ids and labels of one row, such as `prompt.Rendered`."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The ids again where they are supervised, else IGNORE_INDEX."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """A padded batch of B rows of T tokens, with the images in one of two forms, or without any.

    input_ids        (B, T), with one `<image>` id for each image token
    attention_mask   (B, T), 1 for a token, 0 for padding
    labels           (B, T), IGNORE_INDEX where nothing is supervised; None for generation
    inputs_embeds    (B, T, H), embeddings of all ids, with those of the images in their places
    pixel_values     (N, P, D), stored features for a model whose vision tower is StoredFeatures
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None

    @property
    def position_ids(self) -> torch.Tensor:
        """`(B, T)`: count unpadded tokens only, wherever the padding is."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    def to(self, device: torch.device) -> ModelInputs:
        """The same batch on `device`."""
        return replace(self, **{name: value.to(device) for name, value in self._given().items()})

    def to_kwargs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the native model, for its forward pass or `generate`: either ids or
        their embeddings, and whatever else there is.
        """
        given = self._given()
        if self.inputs_embeds is not None:
            del given["input_ids"]
        return given

    def _given(self) -> dict[str, torch.Tensor]:
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def pad_rows(rows: Sequence[TokenRow], pad_id: int, *, multiple_of: int = 1) -> ModelInputs:
    """Rows of ids and labels -> a batch on the CPU, padded with `pad_id` on the right; T is the
    longest row, rounded up to `multiple_of`.
    """
    longest = -(-max(len(row.ids) for row in rows) // multiple_of) * multiple_of
    return ModelInputs(
        _padded([row.ids for row in rows], pad_id, longest),
        _padded([[1] * len(row.ids) for row in rows], 0, longest),
        _padded([row.labels for row in rows], IGNORE_INDEX, longest),
    )


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> ModelInputs:
    """Token ids of prompts -> a batch on the CPU without labels, padded with `pad_id` on the left,
    so that all answers begin in the same column.
    """
    longest = max(len(ids) for ids in prompts)
    return ModelInputs(
        _padded(prompts, pad_id, longest, left=True),
        _padded([[1] * len(ids) for ids in prompts], 0, longest, left=True),
    )


def _padded(
    rows: Sequence[Sequence[int]], value: int, length: int, *, left: bool = False
) -> torch.Tensor:
    """`(B, length)`: the rows, filled with `value` on one side."""
    found = torch.full((len(rows), length), value)
    for i, row in enumerate(rows):
        found[i, length - len(row) if left else 0 :][: len(row)] = torch.tensor(
            row, dtype=torch.long
        )
    return found


def splice_images(
    token_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    image_id: int,
    image_embeds: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Token embeddings `(..., T, H)` of `input_ids` `(..., T)`, with the rows of `image_id`
    replaced by the image embeddings, each `(P', H)`, in their order. Without images, unchanged.
    """
    if not image_embeds:
        return token_embeds
    vectors = torch.cat([one.to(token_embeds) for one in image_embeds])
    where = input_ids == image_id
    assert int(where.sum()) == len(vectors), (
        f"{int(where.sum())} <image> ids for {len(vectors)} image embeddings"
    )
    return token_embeds.masked_scatter(where.unsqueeze(-1), vectors)


class StoredFeatures(nn.Module):
    """A vision tower whose "pixel values" are stored features `(N, P, D)`.

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


def stack_features(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stored features, each `(P, D)` -> `(N, P, D)` in float32: autocast on CPUs cannot concatenate
    float16 tensors.
    """
    return torch.stack([one.float() for one in features])


def project(
    model: Any, image_processor: Any, visuals: Sequence[Visual], *, pool: int = 1
) -> list[torch.Tensor]:
    """Encode and project each image, or its stored features `(P, D)`, to the image embeddings
    `(P', H)` of the language model, in its dtype; patches are averaged over `pool` x `pool` before.
    """
    found: dict[int, torch.Tensor] = {}
    dtype, device = model.lm_head.weight.dtype, model.lm_head.weight.device
    pictures = {i: one for i, one in enumerate(visuals) if not isinstance(one, torch.Tensor)}
    stored = {i: one for i, one in enumerate(visuals) if isinstance(one, torch.Tensor)}
    if pictures:
        pixels = image_processor(list(pictures.values()), return_tensors="pt")["pixel_values"]
        features = _select_features(model, model.model.vision_tower, pixels.to(device, dtype))
        if pool == 1:
            found.update(zip(pictures, _image_embeds(model, features), strict=True))
        else:
            stored |= dict(zip(pictures, features, strict=True))
    if stored:
        averaged = average_patches(
            stack_features([one.to(device) for one in stored.values()]), pool
        )
        config = model.config
        # through a tower's output: the layout of its memory decides how a product is rounded
        tower = StoredFeatures(config.vision_config, _extra_rows(config), dtype)
        found.update(
            zip(
                stored,
                _image_embeds(model, _select_features(model, tower, averaged)),
                strict=True,
            )
        )
    return [found[i] for i in range(len(visuals))]


def _select_features(model: Any, tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The features `(N, P, D)` that the model takes from the output of its vision tower."""
    layer = model.config.vision_feature_layer
    hidden: torch.Tensor = tower(pixel_values, output_hidden_states=True).hidden_states[layer]
    return hidden[:, _extra_rows(model.config) :]


def _image_embeds(model: Any, features: torch.Tensor) -> list[torch.Tensor]:
    """Features `(N, P, D)` -> each image's embeddings `(P', H)`; a projector that merges patches
    returns them as a grid.
    """
    return list(model.model.multi_modal_projector(features).flatten(1, -2))


def _extra_rows(config: PreTrainedConfig) -> int:
    """Rows before the patches in the output of the vision tower."""
    return 1 if config.vision_feature_select_strategy == "default" else 0
