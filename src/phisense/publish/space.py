"""A Hugging Face Space for a model, as a folder and as two uploads.

model/     -> the model USER/NAME         the weights with a card; --gguf's under gguf/
space/     -> the Space USER/NAME         README.md (front matter), app.py, requirements.txt,
           phisense/, perhaps speech/

A Space is rebuilt on every change, so the weights are in a repository of their own, and app.py pins
its revision; in a dry run it uses the folder beside it, without network. phisense is included as
source: a Space installs its requirements before its other files are there, so a wheel in the folder
could not be among them.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from .. import artifacts
from ..artifacts import Manifest
from ..chat.open_engine import GGUF_KIND
from ..errors import ArtifactError, PhisenseError, UsageError
from ..model.four_bit import check_four_bit
from ..opening import validate_folder
from ..opening.files import load_manifest
from ..pipeline.json_fields import JsonObject
from .card import CardMetadata, check_hub_id, model_card

MODEL_KINDS = ("model folder", GGUF_KIND)
MAX_CPU_BYTES = 3e9  # bytes of weights that torch can serve on a free Space (2 cores, 16 GB)
QUANTIZED_GPU = "t4-small"  # hardware for a large model in 4 bits: a GPU of 16 GB
PYTHON_VERSION = "3.12"
_EXTRA = r"extra == ['\"](\w+)['\"]"
#: A Space is built on one machine and runs on another: llama.cpp is compiled for AVX2, not for the
#: CPU of the build machine.
_PORTABLE_BUILD = " --config-settings=cmake.define.GGML_NATIVE=OFF"
_IGNORED_FILES = shutil.ignore_patterns("__pycache__", "*.pyc", "parts", "pretrain")


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What to deploy, checked.

    `hardware` is what the Space suggests; it is requested, and billed, only if
    `hardware_requested`. `quantize`: the Space opens the model in 4 bits.
    """

    space: str
    model: Path
    gguf: Path | None
    hardware: str
    hardware_requested: bool
    private: bool
    metadata: CardMetadata
    quantize: bool = False

    @property
    def runtime_folder(self) -> Path:
        """Folder that the Space runs: the GGUF files if there are any, else the model."""
        return self.gguf or self.model

    @property
    def uses_llama_cpp(self) -> bool:
        """Whether the Space runs llama.cpp; else it runs torch."""
        return any(self.runtime_folder.glob("*.gguf"))


def plan_space(
    space: str,
    model: Path,
    gguf: Path | None,
    hardware: str | None,
    private: bool,
    metadata: CardMetadata,
    *,
    quantize: bool = False,
) -> SpacePlan:
    """Check everything that can be checked before anything is written.

    Raises UsageError and ArtifactError, and PhisenseError for a model that would lose in 4 bits.
    """
    from huggingface_hub import SpaceHardware

    check_hub_id(space, "a Space")
    for folder in (model, *([gguf] if gguf else [])):
        _read_model_manifest(folder, verify=True)
    if gguf is not None and not any(gguf.glob("*.gguf")):
        raise UsageError(f"{gguf} holds no GGUF files", wanted="what phisense export writes")
    made = SpacePlan(
        space, model, gguf, hardware or "", hardware is not None, private, metadata, quantize
    )
    if quantize:
        _check_quantized(made)
    heavy = (
        sum(path.stat().st_size for path in made.runtime_folder.glob("*.safetensors"))
        > MAX_CPU_BYTES
    )
    for name in (*metadata.base_models, *metadata.datasets):
        check_hub_id(name, "a base model or data set")
    known = [str(kind.value) for kind in SpaceHardware]
    if hardware is not None and hardware not in known:
        raise UsageError("there is no such hardware", got=hardware, wanted=", ".join(known))
    if hardware is not None and hardware.startswith("cpu") and heavy and not made.uses_llama_cpp:
        raise UsageError(
            f"{model} is too large for a Space without a GPU",
            got="gigabytes of weights for torch",
            do="Run phisense export and name --gguf DIR",
        )
    if not hardware:
        gpu = QUANTIZED_GPU if quantize else "zero-a10g"
        hardware = gpu if heavy and not made.uses_llama_cpp else "cpu-basic"
    return replace(made, hardware=hardware)


def _check_quantized(plan: SpacePlan) -> None:
    """Raises UsageError where there is nothing to hold in 4 bits, PhisenseError if that loses."""
    if plan.uses_llama_cpp:
        raise UsageError(
            "llama.cpp's files have the bits that they were exported with",
            got="--quantize",
            do="Leave it out, or export with another --quant",
        )
    if plan.hardware.startswith("zero"):
        raise UsageError(
            "a ZeroGPU Space lends a GPU with room for the whole model",
            got="--quantize",
            do="Leave it out",
        )
    check_four_bit(plan.model)


def _read_model_manifest(folder: Path, *, verify: bool = False) -> Manifest:
    """The manifest of a finished model or GGUF folder.

    Only `plan_space` verifies the files, which may be gigabytes.
    """
    if folder.is_dir():
        validate_folder(folder)
    kind = load_manifest(folder).kind if (folder / artifacts.MANIFEST).is_file() else MODEL_KINDS[0]
    if kind not in MODEL_KINDS:
        raise ArtifactError(
            f"{folder} is something else", got=f"a {kind}", wanted=" or a ".join(MODEL_KINDS)
        )
    artifacts.read_manifest(folder, kind=kind, verify=verify)
    return load_manifest(folder)


def write_repositories(plan: SpacePlan, folder: Path) -> None:
    """Write `model/` and `space/`, the latter as for a dry run."""
    write_model_repository(plan, folder / "model")
    write_space_repository(plan, folder / "space", revision=None)


def write_model_repository(plan: SpacePlan, folder: Path) -> None:
    """Write the model repository: exactly the files named in the manifest, and a card."""
    about = _copy_model(plan.model, folder)
    if plan.gguf is not None:
        _copy_model(plan.gguf, folder / "gguf")
    (folder / "README.md").write_text(model_card(plan.space, plan.model, about, plan.metadata))


def _copy_model(source: Path, folder: Path) -> JsonObject:
    """Copy the files, as hard links if possible, and remove local paths from the manifest.

    Returns the remaining `about` of the manifest.
    """
    manifest = _read_model_manifest(source)
    for name in manifest.files:
        to = folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, to)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source / name, to)
    about = {key: value for key, value in manifest.about.items() if not _is_local(value)}
    artifacts.write_json(folder / artifacts.MANIFEST, replace(manifest, about=about).to_dict())
    return about


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and (
        value.startswith((".", "/", "~")) or "\\" in value or Path(value).is_dir()
    )


def write_space_repository(plan: SpacePlan, folder: Path, revision: str | None) -> None:
    """Write the Space repository.

    `revision` of the model repository is what app.py downloads; None in a dry run.
    """
    from huggingface_hub import SpaceCard, SpaceCardData

    folder.mkdir(parents=True)
    name = plan.space.split("/")[1]
    data = SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=PYTHON_VERSION,
        app_file="app.py",
        models=[plan.space],
        license=plan.metadata.licence,
        suggested_hardware=plan.hardware,
    )
    text = (
        f"# {name}\n\nShow a picture and ask about it, by keyboard or by voice. The page is"
        f" phisense's, the model is {plan.space}."
    )
    (folder / "README.md").write_text(str(SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")))
    speech = _copy_speech_part(plan, folder)
    (folder / "requirements.txt").write_text(
        "\n".join(_requirements(plan, speech is not None)) + "\n"
    )
    (folder / "app.py").write_text(_app_source(plan, speech, revision))
    shutil.copytree(Path(__file__).parents[1], folder / "phisense", ignore=_IGNORED_FILES)


def _copy_speech_part(plan: SpacePlan, folder: Path) -> str | None:
    """The speech part for app.py: a hub id, or `speech/`, to which a local folder is copied."""
    part = next(
        (
            found
            for folder_ in (plan.model, plan.runtime_folder)
            if (found := _read_model_manifest(folder_).text("speech"))
        ),
        None,
    )
    if part is None or not _is_local(part):
        return None if part is None else repr(part)
    source = Path(part).expanduser()
    if not source.is_dir():
        raise ArtifactError(
            f"the model's speech part {part} is not there", do="Put it back where the recipe says"
        )
    (folder / "speech").mkdir()
    for path in source.iterdir():
        # model.bin is CTranslate2's format
        if path.suffix in (".json", ".safetensors", ".txt") or path.name == "model.bin":
            shutil.copyfile(path, folder / "speech" / path.name)
    return 'HERE / "speech"'


def _requirements(plan: SpacePlan, speech: bool) -> list[str]:
    """Requirements of phisense, pinned to the installed versions.

    For ZeroGPU, torch is pinned to the supported range.
    """
    try:
        declared = requires("phisense") or []
    except PackageNotFoundError as error:
        raise PhisenseError(
            "phisense is not installed, so what it needs is not known", do="pip install phisense"
        ) from error
    extras = {"app", *(["speech"] if speech else []), *(["cpu"] if plan.uses_llama_cpp else [])}
    if lacking := extras - set(re.findall(_EXTRA, " ".join(declared))):
        raise PhisenseError(
            "phisense was installed before it became what it is",
            got=f"no extra {', '.join(sorted(lacking))}",
            do="pip install it again",
        )
    lines = (
        ["--extra-index-url https://download.pytorch.org/whl/cpu"]
        if plan.hardware.startswith("cpu")
        else []
    )
    for requirement in declared:
        extra = re.search(_EXTRA, requirement)
        parsed = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement)
        assert parsed is not None, requirement  # pyproject.toml's own
        name, wanted = parsed.groups()
        if name == "phisense" or (extra is not None and extra[1] not in extras):
            continue
        if name == "torch" and plan.hardware.startswith("zero"):
            lines.append("torch>=2.9,<2.12")
            continue
        options = _PORTABLE_BUILD if name == "llama-cpp-python" else ""
        try:
            lines.append(f"{name}=={version(name).split('+')[0]}{options}")
        except PackageNotFoundError:  # not needed on this machine
            lines.append(f"{name}{wanted.strip()}{options}")
    return lines


def _app_source(plan: SpacePlan, speech: str | None, revision: str | None) -> str:
    fetched = f"{plan.space!r}{f', revision={revision!r}' if revision else ''}"
    fetched += ', allow_patterns="gguf/*"' if plan.gguf else ""
    lent = not plan.uses_llama_cpp
    lines = [
        (
            f'"""The page of {plan.space}, written by phisense deploy. Change what you like: only'
            ' the Space reads it."""'
        ),
        "",
        "import os",
        "from pathlib import Path",
        *(_IMPORT_SPACES if lent else []),
        "",
        "from huggingface_hub import snapshot_download",
        "",
        "from phisense.app import build, launch",
        "from phisense.chat.open_engine import open_engine",
        *(["from phisense.chat.zerogpu import ZeroGPUEngine"] if lent else []),
        *(["from phisense.speech import Transcriber"] if speech else []),
        "",
        "HERE = Path(__file__).resolve().parent",
        'model = HERE.parent / "model"  # there in a dry run',
        "if not model.is_dir():",
        f"    model = Path(snapshot_download({fetched}))",
        "",
        (
            f"engine = open_engine({'model / ' + repr('gguf') if plan.gguf else 'model'}"
            f"{', quantize=True' if plan.quantize else ''})"
        ),
        *(
            [
                'if spaces is not None and os.environ.get("SPACES_ZERO_GPU"):',
                "    engine = ZeroGPUEngine(engine, spaces.GPU)",
            ]
            if lent
            else []
        ),
        f"ears = {f'Transcriber({speech})' if speech else 'None'}",
        (
            'host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),'
            ' int(os.environ.get("GRADIO_SERVER_PORT", "7860"))'
        ),
        "launch(build(engine, ears), host=host, port=port)",
    ]
    return "\n".join(lines) + "\n"


_IMPORT_SPACES = [
    "",
    "try:",
    "    import spaces  # before torch: on ZeroGPU it lends a GPU for each answer",
    "except ImportError:",
    "    spaces = None",
]
