"""The feature store: equal to fresh features, resumable, and of one encoder only."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from phisense.conversations import ImageFinder
from phisense.distributed import current_process_group
from phisense.errors import ArtifactError, PartError
from phisense.pipeline.progress import Event, OnEvent, Progress, ignore
from phisense.vision.encoders.encode import Encoder, encoder_facts
from phisense.vision.image_io import open_image
from phisense.vision.store import FeatureStore, encode_images, plan_store
from phisense.vision.store.shards import _copy_row

from ..killable import start_process
from ..tiny import make_vision
from .conftest import NAMES


def encode(
    folder: Path,
    encoder: Encoder,
    images: Path,
    names: list[str] = NAMES,
    *,
    dtype: Any = "float32",
    on_event: OnEvent = ignore,
) -> None:
    encode_images(
        folder,
        encoder,
        names,
        ImageFinder([images]),
        dtype=dtype,
        batch=2,
        shard=3,
        on_event=on_event,
    )


def test_stored_equals_fresh(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images)
    store = FeatureStore(tmp_path / "store", facts=encoder.facts)
    assert (len(store), store.tokens, store.width) == (7, 16, 16)
    for name in NAMES:
        fresh = encoder.encode([open_image(images / name)])[0]
        torch.testing.assert_close(store.features(name), fresh, rtol=1e-5, atol=1e-5)
    with pytest.raises(ArtifactError, match=r"has no picture 9\.png"):
        store.features("9.png")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_that_were_read_do_not_stay_resident(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"features": torch.ones(64, 512, 1024, dtype=torch.float16)}, path)  # 1 MiB a row
    rows = safe_open(path, "pt").get_slice("features")

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("RssFile:"))
        return int(line.split()[1]) * 1024

    before = resident()
    assert all(bool((_copy_row(rows[number]) == 1).all()) for number in range(64))
    assert resident() - before < 16 << 20
    assert all(bool((rows[number] == 1).all()) for number in range(64))  # the control
    assert resident() - before > 48 << 20


def test_features_are_the_layer_the_model_reads(images: Path, encoder: Encoder) -> None:
    picture = open_image(images / "0.png")
    pixels = encoder.processor([picture], return_tensors="pt")["pixel_values"]
    hidden = encoder.model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder.encode([picture]), hidden[-2][:, 1:])
    assert not torch.allclose(encoder.encode([picture]), hidden[-1][:, 1:])


def test_an_interrupted_store_is_no_store_and_goes_on(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    encode(whole, encoder, images)
    with pytest.raises(RuntimeError, match="stopped"):
        encode(broken, encoder, images, on_event=stop_after(4))
    assert len(list(broken.glob("*.safetensors"))) == 1
    with pytest.raises(ArtifactError, match="is not a finished feature store"):
        FeatureStore(broken)
    encode(broken, encoder, images)
    for path in sorted(whole.glob("*.safetensors")):
        assert (broken / path.name).read_bytes() == path.read_bytes()


def stop_after(count: int):
    def on_event(event: Event) -> None:
        assert isinstance(event, Progress)
        if event.task == "encoding pictures" and event.done >= count:
            raise RuntimeError("stopped")

    return on_event


def test_another_encoder_is_refused(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images)
    other = Encoder(str(make_vision(tmp_path / "other")), layer=-1)
    with pytest.raises(
        ArtifactError,
        match=(
            r"made by another encoder; got encoder \w{12} \(layer -2\); wanted encoder \w{12}"
            r" \(layer -1\)"
        ),
    ):
        FeatureStore(tmp_path / "store", facts=other.facts)
    with pytest.raises(ArtifactError, match="was made by another encoder"):
        encode(tmp_path / "store", other, images)


def test_the_fingerprint_follows_what_changes_features(tmp_path: Path) -> None:
    part = make_vision(tmp_path / "a")
    first = encoder_facts(str(part), "clip", -2)
    assert encoder_facts(str(part), "clip", -1) != first
    weights = part / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert encoder_facts(str(part), "clip", -2) != first


def test_a_missing_weight_is_an_error_not_a_random_number(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    part = make_vision(tmp_path / "a")
    weights = load_file(part / "model.safetensors")
    del weights[sorted(weights)[3]]
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PartError, match="is incomplete; got 1 weights missing"):
        Encoder(str(part))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_pictures_are_encoded_once(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    (images / "again.png").write_bytes((images / "2.png").read_bytes())
    encode(tmp_path / "store", encoder, images, [*NAMES, "again.png", "0.png"])
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 8
    assert (
        sum(
            len(json.loads(orjson_facts(path))["digests"])
            for path in (tmp_path / "store").glob("*.safetensors")
        )
        == 7
    )
    assert torch.equal(store.features("again.png"), store.features("2.png"))
    assert not torch.equal(store.features("0.png"), store.features("2.png"))


def orjson_facts(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as shard:
        return str(shard.metadata()["phisense"])


@pytest.mark.parametrize(
    ("dtype", "apart"), [("float16", 1e-3), ("int8", 4.5e-3), ("pixels", 1e-5)]
)
def test_every_format_gives_the_features_back(
    tmp_path: Path, images: Path, encoder: Encoder, dtype: str, apart: float
) -> None:
    """Within its precision of each token's largest value."""
    encode(tmp_path / "store", encoder, images, dtype=dtype)
    store = FeatureStore(tmp_path / "store", facts=encoder.facts, dtype=dtype, live=encoder)
    fresh = encoder.encode([open_image(images / name) for name in NAMES])
    stored = store.batch(NAMES).float()
    error = (stored - fresh).abs() / fresh.abs().amax(-1, keepdim=True)
    assert float(error.max()) < apart
    if dtype == "int8":
        assert float(error.max()) > 1e-4, "the control: something was rounded"


def test_another_format_is_refused(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images, dtype="int8")
    with pytest.raises(ArtifactError, match="is of another format; got int8; wanted float16"):
        FeatureStore(tmp_path / "store", dtype="float16")
    with pytest.raises(ArtifactError, match="is of another format; got int8; wanted float32"):
        encode(tmp_path / "store", encoder, images)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9, 0.999])
def test_a_flipped_bit_is_found_before_it_is_used(
    tmp_path: Path, images: Path, encoder: Encoder, at: float
) -> None:
    encode(tmp_path / "store", encoder, images)
    path = sorted((tmp_path / "store").glob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ArtifactError, match=r"features-00001\.safetensors is (damaged|not of this store)"
    ):
        read = [FeatureStore(tmp_path / "store").features(name) for name in NAMES]
    if at >= 0.5:  # else it is in the header, which is read when the store is opened
        read = [FeatureStore(tmp_path / "store").features(name) for name in NAMES[:3]]
        assert all(row.shape == (16, 16) for row in read), "the first shard is whole"


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(
    tmp_path: Path, images: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "whole", encoder, images)
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the first shard and its folder still fit
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ArtifactError, match="cannot write .*; got No space left on device. Free some space"
    ):
        encode(tmp_path / "store", encoder, images)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [
        "features-00000.safetensors"
    ], "nothing half-written"
    encode(tmp_path / "store", encoder, images)
    assert shards(tmp_path / "store") == shards(tmp_path / "whole")


def write_slowly(images: Path, part: str, out: Path) -> None:
    names = sorted(path.name for path in images.iterdir())

    def wait(event: Event) -> None:
        time.sleep(0.05)

    encode_images(
        out,
        Encoder(part),
        names,
        ImageFinder([images]),
        dtype="int8",
        batch=1,
        shard=2,
        on_event=wait,
        processes=current_process_group(),
    )


WRITE = """
import sys
from pathlib import Path
from tests.vision.test_store import write_slowly
images, part, out = sys.argv[1:4]
write_slowly(Path(images), part, Path(out))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(
    tmp_path: Path, images: Path, parts: tuple[str, str], encoder: Encoder
) -> None:
    """A few kills here; `bench/kill_store.py` makes a hundred."""
    from numpy.random import default_rng

    rng = default_rng(3)
    killed = 0
    while killed < 3:
        process = start_process(write_slowly, images, parts[1], tmp_path / "killed")
        while process.is_alive() and not (tmp_path / "killed").exists():
            time.sleep(0.01)
        process.join(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    for store in ("killed", "whole"):
        process = start_process(write_slowly, images, parts[1], tmp_path / store)
        process.join()
        assert process.exitcode == 0
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_with_two_processes_writes_what_one_does(
    tmp_path: Path, images: Path, parts: tuple[str, str]
) -> None:
    """With as many threads each: sums in another order differ in their last bit."""
    (tmp_path / "write.py").write_text(WRITE)
    start_process(write_slowly, images, parts[1], tmp_path / "one").join()
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    words = [str(tmp_path / "write.py"), str(images), parts[1], str(tmp_path / "two")]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *words,
    ]
    ran = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert ran.returncode == 0, ran.stderr
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_the_plan_counts_bytes_as_the_store_writes_them(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    planned = plan_store(encoder, NAMES, ImageFinder([images]), tmp_path, batch=4)
    assert planned.recommended == "float16"
    for one in planned.formats:
        encode(tmp_path / one.format, encoder, images, dtype=one.format)
        stored = sum(
            len(data)
            for name, data in shards(tmp_path / one.format).items()
            if name.endswith(".safetensors")
        )
        assert one.bytes <= stored < one.bytes + 3 * 1500, "and a header for each shard"


@pytest.mark.slow
def test_a_photograph_turned_by_its_tag_has_the_features_of_the_upright_one(
    tmp_path: Path, fixtures: Path, encoder: Encoder
) -> None:
    """The same pixels lying on their side with a tag that says so; without the tag they have other
    features.
    """
    upright = open_image(fixtures / "images" / "landscape_exif1.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "tagged.png", exif=exif)
    lying.save(tmp_path / "plain.png")
    one, tagged, plain = encoder.encode(
        [upright, open_image(tmp_path / "tagged.png"), open_image(tmp_path / "plain.png")]
    )
    assert float((tagged - one).abs().max() / one.abs().max()) < 1e-3
    assert float((plain - one).abs().max() / one.abs().max()) > 1e-2


@pytest.mark.slow
def test_the_real_pair_is_far_nearer_with_its_tag_applied(fixtures: Path, encoder: Encoder) -> None:
    """The two files were compressed apart (their pixels differ by 3.7 of 255), so equal features
    are not to be had from them.
    """
    upright, turned = (
        open_image(fixtures / "images" / f"landscape_exif{tag}.jpg") for tag in (1, 6)
    )
    one, other, lying = encoder.encode(
        [upright, turned, upright.transpose(Image.Transpose.ROTATE_90)]
    )
    assert float((other - one).norm()) < 0.2 * float((lying - one).norm())
