"""What people put where weights are expected: named as what it is, with the way out."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phisense.artifacts import check_is_model
from phisense.errors import ArtifactError, PartError, PhisenseError
from phisense.opening.headers import read_header
from phisense.parts import resolve_part

from ..tiny import make_language


def torch_zip() -> bytes:
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, held)
    return held.getvalue()


def torch_old() -> bytes:
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, held, _use_new_zipfile_serialization=False)
    return held.getvalue()


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("model/config.json", "{}")
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as file:
        told = tarfile.TarInfo("model/config.json")
        told.size = 2
        file.addfile(told, io.BytesIO(b"{}"))
    return held.getvalue()


KINDS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "torch": (torch_zip, "a zip archive of PyTorch", "safetensors"),
    "torch of before 1.6": (torch_old, "a Python pickle", "safetensors"),
    "pickle": (lambda: pickle.dumps({"weight": [1.0]}), "a Python pickle", "safetensors"),
    "zip": (zipped, "a zip archive", "unzip"),
    "tar": (tarred, "a tar archive", "tar -xf"),
    "gzip": (lambda: gzip.compress(b"weights"), "a gzip archive", "gunzip"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(40), "a 7z archive", "Unpack"),
    "gguf": (
        lambda: b"GGUF" + (3).to_bytes(4, "little") + bytes(40),
        "a GGUF file",
        "phisense import FILE",
    ),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", "safetensors"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00v\x00" + bytes(40), "a NumPy array", "safetensors"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "page": (
        lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "a web page",
        "Fetch the file itself",
    ),
}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language(tmp_path_factory.mktemp("part") / "language")


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "weights.zip",
        "tf_model.h5",
        "model.gguf",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_configuration(part: Path, tmp_path: Path, kind: str, name: str) -> None:
    """By its content, whatever it is called."""
    shutil.copytree(part, tmp_path / "part")
    (tmp_path / "part" / "model.safetensors").unlink()
    make, called, do = KINDS[kind]
    (tmp_path / "part" / name).write_bytes(make())
    with pytest.raises(PartError, match="has no safetensors") as caught:
        resolve_part(str(tmp_path / "part"))
    if kind in ("lfs", "page") and name not in ("weights.zip", "model.gguf"):
        assert f"{name!r}, which is {called}" in str(caught.value)
    elif kind not in ("lfs", "page"):
        assert f"{name!r}, which is {called}" in str(caught.value)
        assert do in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_instead_of_a_folder(tmp_path: Path, kind: str) -> None:
    make, called, do = KINDS[kind]
    path = tmp_path / "model"
    path.write_bytes(make())
    for opened, said in (
        (lambda: resolve_part(str(path)), "is a file"),
        (lambda: check_is_model(path), "is not a model folder"),
    ):
        with pytest.raises(PhisenseError, match=said) as caught:
            opened()
        assert called in str(caught.value)
        assert do in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_folder_that_is_none(tmp_path: Path, kind: str) -> None:
    make, called, do = KINDS[kind]
    (tmp_path / "weights.bin").write_bytes(make())
    with pytest.raises(PartError, match="not in hub layout; got no config.json") as caught:
        resolve_part(str(tmp_path))
    assert called in str(caught.value)
    assert do in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_under_the_right_name(part: Path, tmp_path: Path, kind: str, name: str) -> None:
    from phisense.opening import validate_folder

    shutil.copytree(part, tmp_path / "part")
    make, called, do = KINDS[kind]
    (tmp_path / "part" / name).write_bytes(make())
    with pytest.raises(PartError, match="is no safetensors file|is no JSON") as caught:
        _ = validate_folder(tmp_path / "part").headers
    assert called in str(caught.value)
    assert do in str(caught.value)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x0AFF, 0x8B1F])
def test_a_header_whose_length_looks_like_a_signature(tmp_path: Path, length: int) -> None:
    """The control: pickles begin with 80 02 to 80 05, JPEG XL with ff 0a, gzip with 1f 8b, and so
    may a length.
    """
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    data = path.read_bytes()
    before = int.from_bytes(data[:8], "little")
    path.write_bytes(
        length.to_bytes(8, "little") + data[8 : 8 + before].ljust(length) + data[8 + before :]
    )
    assert list(read_header(path)) == ["weight"]
    assert torch.equal(load_file(path)["weight"], torch.ones(3))


def test_a_file_of_no_name_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(PartError, match="cannot be opened; got a header of"):
        read_header(tmp_path / "model.safetensors")
    (tmp_path / "file").write_text(json.dumps({"a": 1}))
    with pytest.raises(ArtifactError, match="is not a model folder; got a file; wanted the folder"):
        check_is_model(tmp_path / "file")
