"""Towers and Whispers go through the opener as model folders do: spoilt ones are refused in a
sentence, or are what they say.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from phisense.errors import PartError
from phisense.practice import spoken
from phisense.speech import Transcriber
from phisense.speech.ctranslate2_model import ctranslate2_folder
from phisense.vision.encoders.encode import Encoder
from phisense.vision.encoders.loading import load_image_processor

from .. import hostile_folders as made
from ..tiny import make_vision

BENCH = Path(__file__).parents[2] / "bench" / "hostile_folders.py"
PART = spoken.RECORDINGS_FOLDER.parent / "speech"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tower", "whisper", "converted"])
def test_hostile_parts_are_refused_or_right(kind: str) -> None:
    """The bench's first 22; docs/benchmarks.md has the figures of 100."""
    done = subprocess.run(
        [sys.executable, str(BENCH), "--parts", kind, "--count", "22"],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    told = json.loads(done.stdout.decode().splitlines()[-1])
    spoilt = {
        key for key in told if key not in ("kind", "opener", "peak_gb", "usual_gb", "slowest")
    }
    assert spoilt <= {"refused", "right", "another model"}, done.stdout.decode()
    assert told["refused"] >= 12
    assert told["peak_gb"] < 1


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    return make_vision(tmp_path / "tower")


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PART, tmp_path / "whisper"))


def change(path: Path, key: str, value: Any) -> None:
    told = json.loads(path.read_bytes())
    made._put(told, tuple(key.split(".")), value)
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_std", [0, 0, 0], "none of image_std 0"),
        ("image_std", None, "does not say how pictures were prepared; got no image_std"),
        ("image_mean", "x", "image_mean x"),
        ("resample", 99, "resample 99"),
        ("image_processor_type", "EvilImageProcessor", "EvilImageProcessor"),
    ],
)
def test_a_towers_processor_is_judged(tower: Path, key: str, value: Any, said: str) -> None:
    change(tower / "preprocessor_config.json", key, value)
    with pytest.raises(PartError, match=said):
        Encoder(str(tower))


def test_a_whole_models_processor_is_judged_wherever_it_is_read(tower: Path) -> None:
    """Also where the folder was never opened before."""
    change(tower / "preprocessor_config.json", "image_std", [0, 0, 0])
    with pytest.raises(PartError, match="none of image_std 0"):
        load_image_processor(tower)


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("config.json", "encoder_layers", "x", "cannot be opened as config|cannot be loaded"),
        ("config.json", "encoder_layers", 10**6, "encoder_layers 1000000"),
        ("config.json", "d_model", 4096, "does not fit its weights"),
        ("preprocessor_config.json", "n_fft", 10**9, "n_fft 1000000000"),
        (
            "preprocessor_config.json",
            "feature_size",
            128,
            "128 bins, 400 frames at 16,000 Hz; wanted 80 bins",
        ),
        ("preprocessor_config.json", "chunk_length", 30, "1,500 frames"),
        ("generation_config.json", "suppress_tokens", [10**9], "names no tokens of this Whisper"),
        ("tokenizer.json", "model.type", "Unigram", "wanted BPE"),
    ],
)
def test_a_whisper_is_judged_before_it_is_converted(
    whisper: Path, tmp_path: Path, file: str, key: str, value: Any, said: str
) -> None:
    change(whisper / file, key, value)
    with pytest.raises(PartError, match=said):
        Transcriber(whisper, cache=tmp_path / "cache", device="cpu")


def test_a_configuration_that_is_a_list(whisper: Path, tmp_path: Path) -> None:
    (whisper / "config.json").write_text("[1]")
    with pytest.raises(PartError, match="wanted an object"):
        Transcriber(whisper, cache=tmp_path / "cache", device="cpu")


def test_no_adapter_is_put_on_and_no_kernel_fetched(
    whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.modeling_utils.is_kernel",
        lambda name: pytest.fail(f"{name} is a kernel") if "/" in str(name) else False,
    )
    change(whisper / "config.json", "attn_implementation", "kernels-community/flash-attn")
    ctranslate2_folder(whisper, tmp_path / "cache")
    (whisper / "adapter_config.json").write_text("{}")
    with pytest.raises(PartError, match="holds an adapter beside its weights"):
        ctranslate2_folder(whisper, tmp_path / "cache")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted one, as others' are: without a manifest."""
    folder = tmp_path_factory.mktemp("ready")
    shutil.copytree(ctranslate2_folder(PART, folder / "cache"), folder / "converted")
    (folder / "converted" / "manifest.json").unlink()
    return folder / "converted"


def test_a_converted_whisper_is_tried_first(ready: Path, tmp_path: Path) -> None:
    """With no heads CTranslate2 divides by zero, which would end this process."""
    shutil.copytree(ready, tmp_path / "spoilt")
    path = tmp_path / "spoilt" / "model.bin"
    data = bytearray(path.read_bytes())
    at = data.index(b"encoder/num_heads\0") + len(b"encoder/num_heads\0")
    data[at + 6] = 0
    path.write_bytes(data)
    with pytest.raises(PartError, match="cannot be loaded; got SIGFPE|num_heads"):
        Transcriber(tmp_path / "spoilt", device="cpu")
    assert Transcriber(ready, device="cpu").multilingual is False


def test_links_and_lists_of_a_converted_whisper(ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "spoilt")
    (tmp_path / "spoilt" / "model.bin").unlink()
    (tmp_path / "spoilt" / "model.bin").symlink_to(ready / "model.bin")
    with pytest.raises(PartError, match="is a link out of its folder"):
        Transcriber(tmp_path / "spoilt", device="cpu")
    (tmp_path / "spoilt" / "model.bin").unlink()
    shutil.copy(ready / "model.bin", tmp_path / "spoilt")
    change(tmp_path / "spoilt" / "config.json", "suppress_ids", [10**9])
    with pytest.raises(PartError, match="names no tokens of this Whisper; got suppress_ids"):
        Transcriber(tmp_path / "spoilt", device="cpu")


@pytest.mark.slow
def test_weights_of_a_whisper_are_numbers(whisper: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = whisper / "model-00002-of-00002.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = torch.inf
    save_file(weights, path)
    with pytest.raises(PartError, match="no numbers of a model"):
        Transcriber(whisper, cache=tmp_path / "cache", device="cpu")
