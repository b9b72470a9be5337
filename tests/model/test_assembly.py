"""The assembled model: native classes, stored features equal to fresh ones, batches of any
mixture.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AyaVisionForConditionalGeneration, LlavaForConditionalGeneration

from phisense import Phi3WithProjector
from phisense.conversations import IMAGE, Message
from phisense.errors import PartError, TrainingError
from phisense.families import family_titles
from phisense.model import load_model, save_model
from phisense.model.lora import add_lora, check_targets, expected_trainable
from phisense.recipe import Lora, Projector
from phisense.vision.encoders.encode import Encoder

from ..tiny import generated


def picture(seed: int) -> Image.Image:
    torch.manual_seed(seed)
    return Image.fromarray((torch.rand(40, 30, 3) * 255).byte().numpy())


def talk(question: str, answer: str = "Red.") -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


@pytest.fixture(params=[1, 2], ids=["llava", "pooled"])
def built(request: pytest.FixtureRequest, parts: tuple[str, str]) -> Phi3WithProjector:
    return Phi3WithProjector.assemble(*parts, Projector(pool=request.param), dtype=torch.float32)


def logits(
    built: Phi3WithProjector, conversations: list[list[Message]], visuals: list[list[Any]]
) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = built.model(**built.inputs(conversations, visuals).to_kwargs()).logits
    return out


def test_it_is_a_native_class(parts: tuple[str, str]) -> None:
    plain = Phi3WithProjector.assemble(*parts)
    pooled = Phi3WithProjector.assemble(*parts, Projector(pool=2))
    assert type(plain.model) is LlavaForConditionalGeneration
    assert type(pooled.model) is AyaVisionForConditionalGeneration
    assert (plain.image_tokens, pooled.image_tokens) == (16, 4)


def test_stored_features_equal_the_picture(
    built: Phi3WithProjector, parts: tuple[str, str]
) -> None:
    encoder = Encoder(parts[1])
    asked = [talk(f"{IMAGE}\nWhat?")]
    fresh = logits(built, asked, [[picture(1)]])
    stored = logits(built, asked, [[encoder.encode([picture(1)])[0]]])
    torch.testing.assert_close(stored, fresh, rtol=1e-4, atol=1e-4)
    other = logits(built, asked, [[picture(2)]])
    assert not torch.allclose(other, fresh, atol=1e-4), "another picture must give something else"


def test_the_seam_equals_plain_pixels(parts: tuple[str, str]) -> None:
    """What training sees through the stand-in is what the native model computes from pixels."""
    built = Phi3WithProjector.assemble(*parts, dtype=torch.float32)
    batch = built.inputs([talk(f"{IMAGE}\nWhat?")], [[picture(1)]])
    pixels = built.processor.image_processor([picture(1)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        native = built.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=pixels,
        ).logits
        ours = built.model(**batch.to_kwargs()).logits
    torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-4)


def test_a_mixed_batch_equals_its_rows_alone(
    built: Phi3WithProjector, parts: tuple[str, str]
) -> None:
    """No picture, one, two; pictures and stored features; padding changes nothing."""
    stored = Encoder(parts[1]).encode([picture(3)])[0]
    conversations = [
        talk("Hello."),
        talk(f"{IMAGE}\nWhat colour is the circle?"),
        talk(f"{IMAGE}\n{IMAGE}\nWhich?", "Both."),
    ]
    visuals: list[list[Any]] = [[], [picture(1)], [stored, picture(2)]]
    together = logits(built, conversations, visuals)
    for row, (conversation, seen) in enumerate(zip(conversations, visuals, strict=True)):
        alone = logits(built, [conversation], [seen])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_left_padded_answers_equal_single_ones(built: Phi3WithProjector) -> None:
    questions = [
        [Message("user", "Hi.")],
        [Message("user", f"{IMAGE}\nWhat colour is the large circle at the top left?")],
    ]
    seen: list[list[Any]] = [[], [picture(1)]]
    together = generated(built, questions, seen, max_new_tokens=6)
    alone = [
        generated(built, [q], [s], max_new_tokens=6)[0]
        for q, s in zip(questions, seen, strict=True)
    ]
    assert together == alone


def test_a_saved_folder_opens_the_same(built: Phi3WithProjector, tmp_path: Path) -> None:
    save_model(built, tmp_path)
    again = load_model(tmp_path, "cpu", torch.float32)
    asked = [talk(f"{IMAGE}\nWhat?")]
    torch.testing.assert_close(
        logits(again, asked, [[picture(1)]]), logits(built, asked, [[picture(1)]])
    )
    assert again.image_tokens == built.image_tokens


def test_pooling_begins_as_the_average_of_four_patches(parts: tuple[str, str]) -> None:
    """Features that are equal in each 2x2 block give what the mean gives: the first layer has no
    preference among the four.
    """
    pooled = Phi3WithProjector.assemble(*parts, Projector(pool=2), dtype=torch.float32)
    torch.manual_seed(0)
    features = torch.rand(16, 16)
    # rows exchanged within each block
    swapped = features.view(2, 2, 2, 2, 16).flip(1).reshape(16, 16)
    torch.testing.assert_close(
        pooled.project([swapped])[0], pooled.project([features])[0], rtol=1e-3, atol=1e-3
    )


def test_trainable_parameters_are_as_the_shapes_say(parts: tuple[str, str]) -> None:
    built = Phi3WithProjector.assemble(*parts, dtype=torch.float32)
    built.model.requires_grad_(False)
    adapted = add_lora(built.model, Lora(rank=4))
    counted = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    projector = built.model.model.multi_modal_projector.modules_to_save["default"]
    # Width 32, MLP 64, 2 layers; projector 16 -> 32 -> 32 with biases.
    by_hand = 2 * 4 * ((32 + 96) + (32 + 32) + (32 + 128) + (64 + 32)) + (
        16 * 32 + 32 + 32 * 32 + 32
    )
    assert counted == by_hand == expected_trainable(built.model, Lora(rank=4), projector=projector)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        # the prototype's names, and CLIP's o_proj
        (r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)", "got 10 matched"),
        (r".*(qkv_proj|o_proj|gate_up_proj|down_proj|fc1)", "wanted 8"),
        (r".*(", "is not a regular expression"),
    ],
)
def test_a_wrong_lora_pattern_is_refused(parts: tuple[str, str], pattern: str, words: str) -> None:
    built = Phi3WithProjector.assemble(*parts)
    with pytest.raises(TrainingError, match=words if "10" not in words else r"\d+ matched"):
        check_targets(built.model, pattern)


def test_parts_of_the_wrong_kind_are_sentences(parts: tuple[str, str], tmp_path: Path) -> None:
    language, vision = parts
    known = f"is no {re.escape(family_titles())}; got clip_vision_model; wanted phi3 or "
    with pytest.raises(PartError, match=known):
        Phi3WithProjector.assemble(vision, vision)
    with pytest.raises(PartError, match="is no clip encoder; got phi3"):
        Phi3WithProjector.assemble(language, language)
    with pytest.raises(
        PartError, match="no such folder; wanted a folder in hub layout or a hub id"
    ):
        Phi3WithProjector.assemble(str(tmp_path / "none"), vision)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        PartError, match="has no safetensors; .*wanted .* pickled weights are never loaded"
    ):
        Phi3WithProjector.assemble(str(tmp_path / "pickled"), vision)
