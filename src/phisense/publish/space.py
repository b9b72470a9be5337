"""A Hugging Face Space over a model, as a folder and as two uploads.

model/     -> the model USER/NAME         the weights with a card; --gguf's under gguf/
space/     -> the Space USER/NAME         README.md (front matter), app.py, requirements.txt, phisense/, perhaps speech/

A Space is rebuilt with every change, so the weights are in a repository of their own, and app.py names the revision it was written for; in
a dry run it finds them in the folder beside, without a network. phisense travels as source: a Space installs its requirements before any
other of its files is there, so a wheel in the folder could not be among them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from .. import artefact
from ..chat.choose import GGUF
from ..errors import ArtefactError, PhisenseError, UsageError
from .card import Told, check_id, model_card

KINDS = ("model folder", GGUF)
KIND = "space"
MOST_ON_CPU = 3e9  # bytes of weights that two free cores and 16 GB should be asked to run in torch
PYTHON = "3.12"
_EXTRA = r"extra == ['\"](\w+)['\"]"
#: A Space is built on one machine and runs on another: llama.cpp is compiled for AVX2, not for the processor it happens to be built on.
_ANYWHERE = " --config-settings=cmake.define.GGML_NATIVE=OFF"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "parts", "pretrain")


@dataclass(frozen=True, slots=True)
class Plan:
    """`hardware` is what the Space suggests; it is only rented if it was `asked` for."""

    space: str
    model: Path
    gguf: Path | None
    hardware: str
    asked: bool
    private: bool
    told: Told

    @property
    def runs(self) -> Path:
        return self.gguf or self.model

    @property
    def in_llama(self) -> bool:
        return any(self.runs.glob("*.gguf"))


def plan(space: str, model: Path, gguf: Path | None, hardware: str | None, private: bool, told: Told) -> Plan:
    """Checks everything that can be before anything is written. Raises UsageError and ArtefactError."""
    from huggingface_hub import SpaceHardware

    check_id(space, "a Space")
    for folder in (model, *([gguf] if gguf else [])):
        _manifest(folder, verify=True)
    if gguf is not None and not any(gguf.glob("*.gguf")):
        raise UsageError(f"{gguf} holds no GGUF files", wanted="what phisense export writes")
    made = Plan(space, model, gguf, hardware or "", hardware is not None, private, told)
    heavy = sum(path.stat().st_size for path in made.runs.glob("*.safetensors")) > MOST_ON_CPU
    for name in (*told.base_models, *told.datasets):
        check_id(name, "a base model or data set")
    known = [str(kind.value) for kind in SpaceHardware]
    if hardware is not None and hardware not in known:
        raise UsageError("there is no such hardware", got=hardware, wanted=", ".join(known))
    if hardware is not None and hardware.startswith("cpu") and heavy and not made.in_llama:
        raise UsageError(
            f"{model} is too large for a Space without a GPU",
            got="gigabytes of weights for torch",
            do="Run phisense export and name --gguf DIR",
        )
    return Plan(space, model, gguf, hardware or ("zero-a10g" if heavy and not made.in_llama else "cpu-basic"), made.asked, private, told)


def _manifest(folder: Path, *, verify: bool = False) -> dict[str, Any]:
    """The whole manifest of a finished model or GGUF folder. `plan` verifies the files, which may be gigabytes; the rest trusts it."""
    kind = artefact.read_json(folder / artefact.MANIFEST)["kind"] if (folder / artefact.MANIFEST).is_file() else KINDS[0]
    if kind not in KINDS:
        raise ArtefactError(f"{folder} is something else", got=f"a {kind}", wanted=" or a ".join(KINDS))
    artefact.read_manifest(folder, kind=kind, verify=verify)
    found: dict[str, Any] = artefact.read_json(folder / artefact.MANIFEST)
    return found


@contextmanager
def staged(made: Plan, out: Path) -> Iterator[Path]:
    """Gives the finished folder, still aside; it becomes `out` when the block ends well."""
    if out.exists() and not (out / artefact.MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and no Space of phisense's", do="Name another folder")
    with artefact.staged(out, kind=KIND, about={"space": made.space}) as aside:
        write(made, aside)
        yield aside


def write(made: Plan, folder: Path) -> None:
    """`model/` and `space/`, the latter as for a dry run."""
    write_model(made, folder / "model")
    write_space(made, folder / "space", revision=None)


def write_model(made: Plan, folder: Path) -> None:
    """What goes into the model's repository: the files that its manifest names, and no others, with a card."""
    about = _copy(made.model, folder)
    if made.gguf is not None:
        _copy(made.gguf, folder / "gguf")
    (folder / "README.md").write_text(model_card(made.space, made.model, about, made.told))


def _copy(source: Path, folder: Path) -> dict[str, Any]:
    """Hard links where the disk allows. Paths of this machine are left out of the manifest; returns what it says besides."""
    manifest = _manifest(source)
    for name in manifest["files"]:
        to = folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, to)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source / name, to)
    about = {key: value for key, value in manifest["about"].items() if not _is_local(value)}
    artefact.write_json(folder / artefact.MANIFEST, {**manifest, "about": about})
    return about


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith((".", "/", "~")) or "\\" in value or Path(value).is_dir())


def write_space(made: Plan, folder: Path, revision: str | None) -> None:
    """What goes into the Space. `revision` of the model's repository is what app.py will fetch; None in a dry run."""
    from huggingface_hub import SpaceCard, SpaceCardData

    folder.mkdir(parents=True)
    name = made.space.split("/")[1]
    data = SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=PYTHON,
        app_file="app.py",
        models=[made.space],
        license=made.told.licence,
        suggested_hardware=made.hardware,
    )
    text = f"# {name}\n\nShow a picture and ask about it, by keyboard or by voice. The page is phisense's, the model is {made.space}."
    (folder / "README.md").write_text(str(SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")))
    speech = _speech(made, folder)
    (folder / "requirements.txt").write_text("\n".join(_requirements(made, speech is not None)) + "\n")
    (folder / "app.py").write_text(_app(made, speech, revision))
    shutil.copytree(Path(__file__).parents[1], folder / "phisense", ignore=_LEFT_OUT)


def _speech(made: Plan, folder: Path) -> str | None:
    """The speech part as app.py calls it: an id of the hub, or the folder's `speech/` if the model names a folder, which is copied."""
    part = next((found for folder_ in (made.model, made.runs) if (found := _manifest(folder_)["about"].get("speech"))), None)
    if part is None or not _is_local(part):
        return None if part is None else repr(part)
    source = Path(part).expanduser()
    if not source.is_dir():
        raise ArtefactError(f"the model's speech part {part} is not there", do="Put it back where the recipe says")
    (folder / "speech").mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".safetensors", ".txt") or path.name == "model.bin":  # the latter in CTranslate2's format
            shutil.copyfile(path, folder / "speech" / path.name)
    return 'HERE / "speech"'


def _requirements(made: Plan, speech: bool) -> list[str]:
    """phisense's own requirements, each at the version that is installed here; for ZeroGPU torch in the range it supports."""
    try:
        declared = requires("phisense") or []
    except PackageNotFoundError as error:
        raise PhisenseError("phisense is not installed, so what it needs is not known", do="pip install phisense") from error
    extras = {"app", *(["speech"] if speech else []), *(["cpu"] if made.in_llama else [])}
    if lacking := extras - set(re.findall(_EXTRA, " ".join(declared))):
        raise PhisenseError(
            "phisense was installed before it became what it is", got=f"no extra {', '.join(sorted(lacking))}", do="pip install it again"
        )
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu"] if made.hardware.startswith("cpu") else []
    for requirement in declared:
        extra = re.search(_EXTRA, requirement)
        name, wanted = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement).groups()  # type: ignore[union-attr]
        if name == "phisense" or (extra is not None and extra[1] not in extras):
            continue
        if name == "torch" and made.hardware.startswith("zero"):
            lines.append("torch>=2.9,<2.12")
            continue
        options = _ANYWHERE if name == "llama-cpp-python" else ""
        try:
            lines.append(f"{name}=={version(name).split('+')[0]}{options}")
        except PackageNotFoundError:  # not needed on this machine
            lines.append(f"{name}{wanted.strip()}{options}")
    return lines


def _app(made: Plan, speech: str | None, revision: str | None) -> str:
    room, engine = ("llama_engine", "LlamaEngine") if made.in_llama else ("torch_engine", "TorchEngine")
    fetched = f"{made.space!r}{f', revision={revision!r}' if revision else ''}"
    fetched += ', allow_patterns="gguf/*"' if made.gguf else ""
    lent = not made.in_llama
    lines = [
        f'"""The page of {made.space}, written by phisense deploy. Change what you like: only the Space reads it."""',
        "",
        "import os",
        "from pathlib import Path",
        *(_SPACES if lent else []),
        "",
        "from huggingface_hub import snapshot_download",
        "",
        "from phisense.app import build, launch",
        f"from phisense.chat.{room} import {engine}",
        *(["from phisense.chat.on_loan import OnLoan"] if lent else []),
        *(["from phisense.speech import Transcriber"] if speech else []),
        "",
        "HERE = Path(__file__).resolve().parent",
        'model = HERE.parent / "model"  # there in a dry run',
        "if not model.is_dir():",
        f"    model = Path(snapshot_download({fetched}))",
        "",
        f"engine = {engine}.open({'model / ' + repr('gguf') if made.gguf else 'model'})",
        *(['if spaces is not None and os.environ.get("SPACES_ZERO_GPU"):', "    engine = OnLoan(engine, spaces.GPU)"] if lent else []),
        f"ears = {f'Transcriber({speech})' if speech else 'None'}",
        'host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))',
        "launch(build(engine, ears), host=host, port=port)",
    ]
    return "\n".join(lines) + "\n"


_SPACES = [
    "",
    "try:",
    "    import spaces  # before torch: on ZeroGPU it lends a GPU for each answer",
    "except ImportError:",
    "    spaces = None",
]


def check_token() -> None:
    """Raises UsageError, saying how to get one, unless huggingface_hub finds a token. It is not read further."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UsageError(
            "there is no Hugging Face token here",
            do="Make one that may write, in your settings on huggingface.co under Access Tokens, and run hf auth login (or set HF_TOKEN); "
            "--dry-run DIR needs none",
        )


def upload(made: Plan, folder: Path, say: Callable[[str], None]) -> str:
    """`folder/model` and `folder/space` to the hub; returns the Space's address. The model comes first: the Space names its revision.

    Raises PhisenseError if the hub refuses, saying what is there already.
    """
    from huggingface_hub import HfApi

    api, done = HfApi(), "nothing was uploaded"
    try:
        say(f"model {made.space}")
        api.create_repo(made.space, repo_type="model", private=made.private, exist_ok=True)
        commit = api.upload_folder(repo_id=made.space, repo_type="model", folder_path=folder / "model", commit_message="phisense deploy")
        done = f"the model {made.space} is there, the Space is not finished"
        shutil.rmtree(folder / "space")
        write_space(made, folder / "space", revision=commit.oid)
        say(f"space {made.space}")
        hardware: dict[str, Any] = {"space_hardware": made.hardware} if made.asked else {}
        api.create_repo(made.space, repo_type="space", space_sdk="gradio", private=made.private, exist_ok=True, **hardware)
        api.upload_folder(
            repo_id=made.space,
            repo_type="space",
            folder_path=folder / "space",
            commit_message="phisense deploy",
            delete_patterns=["phisense/*", "speech/*"],  # of an earlier deploy; what else is there stays
        )
    except Exception as error:  # the hub's client raises what three libraries raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PhisenseError(
            f"the hub refused; {done}", got=reason.rstrip("."), do="Mend that and deploy again; it goes on where it must"
        ) from error
    return f"https://huggingface.co/spaces/{made.space}"
