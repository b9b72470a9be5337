"""The output matrix of every family, tied to the embedding or not: what is saved opens in plain
transformers without a missing, surplus or misshapen weight, and computes the same to the bit.
"""

from __future__ import annotations

import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from phisense import artifacts
from phisense.conversations import IMAGE, Message
from phisense.errors import PartError
from phisense.families import FAMILIES
from phisense.importing import import_folder
from phisense.model import Phi3WithProjector, load_model, save_model
from phisense.model.tied_head import match_config_to_head
from phisense.publish.space import _copy_model
from phisense.recipe import Projector

from ..conftest import LONG
from ..families import made
from ..tiny import make_real_language, make_vision

#: A small language part of each family; Phi-3's is like a real one.
PARTS: dict[str, Any] = {name: partial(made.make_language, family=name) for name in FAMILIES} | {
    "phi3": make_real_language
}
CLASSES = {"LLaVA": 1, "pooled": 2}  # the projector's pool, which chooses the class
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Of the first family all; of the others, which share their saving with it, two.
CASES = [
    (name, tied, kind, dtype)
    for name in PARTS
    for tied in (True, False)
    for kind in CLASSES
    for dtype in DTYPES
    if LONG
    or name == "phi3"
    or (tied, kind, dtype) in ((True, "LLaVA", "bfloat16"), (False, "pooled", "float32"))
]
TALK = (Message("user", f"{IMAGE}\nWhat colour is it?"), Message("assistant", "Red."))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The language part of a family, made once."""

    @cache
    def part(name: str, tied: bool) -> Path:
        folder = tmp_path_factory.mktemp("language")
        found: Path = PARTS[name](folder, tied=tied)
        return found

    return part


def assemble(language: Path, vision: Path, pool: int, dtype: torch.dtype) -> Phi3WithProjector:
    return Phi3WithProjector.assemble(
        str(language), str(vision), Projector(pool=pool), device="cpu", dtype=dtype
    )


@torch.inference_mode()
def logits(model: Any, built: Phi3WithProjector) -> torch.Tensor:
    side = built.model.config.vision_config.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    row = built.prompt.render_conversation(TALK, [built.image_tokens])
    ids = torch.tensor([row.ids])
    found: torch.Tensor = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels.to(built.model.dtype),
    ).logits
    return found


def stored_head(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")
    found = [w for name, w in weights.items() if name.endswith("lm_head.weight")]
    table = next(w for name, w in weights.items() if name.endswith("embed_tokens.weight"))
    return found[0] if found else table


@pytest.mark.parametrize(("name", "tied", "kind", "format_"), CASES)
def test_plain_transformers_opens_what_was_saved(
    language: Any, vision: Path, tmp_path: Path, name: str, tied: bool, kind: str, format_: str
) -> None:
    part, dtype = language(name, tied), DTYPES[format_]
    built = assemble(part, vision, CLASSES[kind], dtype)
    assert built.model.config.tie_word_embeddings is tied
    folder = tmp_path / "model"
    with artifacts.staged_artifact(folder, kind="model folder") as aside:
        save_model(built, aside)
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is table.weight) is tied
    assert torch.equal(head.weight, stored_head(part).to(dtype))  # the part's, bit for bit
    assert torch.equal(logits(model.eval(), built), logits(built.model, built))
    published = tmp_path / "published"  # as `deploy` copies it
    _copy_model(folder, published)
    for path in folder.iterdir():
        if path.name != artifacts.MANIFEST:
            assert (published / path.name).read_bytes() == path.read_bytes()
    again = tmp_path / "again"  # what was opened and is saved once more, as by merging a start
    with artifacts.staged_artifact(again, kind="model folder") as aside:
        save_model(load_model(folder, "cpu", dtype), aside)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("format_", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_an_import_keeps_the_head(
    language: Any, vision: Path, tmp_path: Path, tied: bool, format_: str
) -> None:
    part, dtype = language("phi3", tied), DTYPES[format_]
    built, source = assemble(part, vision, 1, dtype), tmp_path / "source"
    with artifacts.staged_artifact(source, kind="model folder") as aside:
        save_model(built, aside)
    imported = import_folder(str(source), tmp_path / "imported", device="cpu").folder
    model, report = AutoModelForImageTextToText.from_pretrained(
        imported, dtype=dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert torch.equal(model.lm_head.weight, stored_head(part).to(dtype))
    assert torch.equal(logits(model.eval(), built), logits(built.model, built))


def test_a_tied_head_that_differs_is_kept_apart(
    tmp_path: Path, vision: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part that ties by its configuration and stores another head: both are what it stores, and
    the folder says so.
    """
    part = make_real_language(tmp_path / "part", tied=True)
    weights = load_file(part / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 0.5
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    built = assemble(part, vision, 1, torch.float32)
    assert "they differ: both are kept" in caplog.text
    folder = tmp_path / "model"
    with artifacts.staged_artifact(folder, kind="model folder") as aside:
        save_model(built, aside)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.tie_word_embeddings is model.config.text_config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(logits(model.eval(), built), logits(built.model, built))


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_configuration_follows_the_weights(
    tmp_path: Path, vision: Path, says: bool, shared: bool
) -> None:
    """The fault that was found on real weights: untied by its configuration, tied in memory; the
    head was not saved, and what opened it drew another at random.
    """
    built = assemble(make_real_language(tmp_path / "part", tied=shared), vision, 1, torch.float32)
    for config in (built.model.config, built.model.config.text_config):
        config.tie_word_embeddings = says
    match_config_to_head(built.model, "it")
    assert built.model.config.tie_word_embeddings is shared
    assert built.model.config.text_config.tie_word_embeddings is shared
    folder = tmp_path / "model"
    with artifacts.staged_artifact(folder, kind="model folder") as aside:
        save_model(built, aside)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(logits(model.eval(), built), logits(built.model, built))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.layers.0.self_attn.extra.weight", "no place for; got 1, such as model.layers.0"),
        ("model.layers.7.mlp.down_proj.weight", "no place for; got 1, such as model.layers.7"),
        ("model.layers.0.rotary_emb.inv_freq", None),  # a buffer that older versions saved
    ],
)
def test_a_surplus_weight_of_a_language_part(
    tmp_path: Path, vision: Path, name: str, said: str | None
) -> None:
    part = make_real_language(tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    save_file({**weights, name: torch.ones(3)}, part / "model.safetensors", {"format": "pt"})
    if said is None:
        assemble(part, vision, 1, torch.float32)
        return
    with pytest.raises(PartError, match=said):
        assemble(part, vision, 1, torch.float32)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("text_model.encoder.layers.0.mlp.fc1.weight", True),
        ("logit_scale", True),
        ("vision_model.embeddings.position_ids", True),
        ("audio_model.layers.0.weight", False),
        ("vision_model.encoder.layers.9.mlp.fc1.weight", False),
    ],
)
def test_a_surplus_weight_of_a_vision_part(
    tmp_path: Path, parts: tuple[str, str], name: str, taken: bool
) -> None:
    """What CLIP's own folder has besides is listed by name; all else is an error."""
    part = tmp_path / "vision"
    shutil.copytree(parts[1], part)
    weights = load_file(part / "model.safetensors")
    save_file({**weights, name: torch.ones(3)}, part / "model.safetensors", {"format": "pt"})
    if taken:
        assemble(Path(parts[0]), part, 1, torch.float32)
        return
    with pytest.raises(PartError, match="no place for; got 1, such as"):
        assemble(Path(parts[0]), part, 1, torch.float32)
