"""llama.cpp is tried before it is depended on: what a kernel that dies, hangs or errs becomes, and
that the real one answers here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phisense.chat import llama_probe, servers
from phisense.errors import PartError

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from phisense.chat import llama_probe_worker
from phisense.chat.llama_context import LlamaContext

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, signal, sys, time
asked = json.loads(sys.argv[1])
repack = asked["repack"]
with open({runs!r}, "a") as runs:
    runs.write("x")
def die(number):
    os.kill(os.getpid(), number)
{first}
print("ready", flush=True)
for kind in asked["types"]:
    print("try", kind, flush=True)
    cosine = 0.9
    {each}
    print("done", kind, cosine, flush=True)
"""
Trial = Callable[..., Path]


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Makes the child another script, with a cache of its own; gives the file that grows by one
    with each child.
    """
    monkeypatch.setenv("PHISENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_probe, "_warned_types", set())

    def make(each: str = "pass", first: str = "") -> Path:
        script, runs = tmp_path / "trial.py", tmp_path / "runs"
        script.write_text(SCRIPT.format(each=each, first=first, runs=str(runs)))
        monkeypatch.setattr(llama_probe, "_WORKER", script)
        llama_probe._cached_probe_results.cache_clear()
        return runs

    return make


def test_one_that_lives_is_opened_as_llama_cpp_would(
    trial: Trial, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = trial()
    assert llama_probe.can_repack(llama_probe.PROBED_TYPES)
    assert llama_probe.can_repack(["IQ1_S"]), "not tried, and nothing speaks against it"
    assert llama_probe.can_repack_file(tmp_path / "not read")
    llama_probe.require_llama_cpp()
    assert runs.read_text() == "x"
    assert capsys.readouterr().err == ""


def test_one_that_dies_of_repacked_weights_keeps_them_as_stored(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = trial('if repack and kind in ("Q8_0", "Q4_K"): die(signal.SIGSEGV)')
    assert not llama_probe.can_repack(["F32", "Q4_K", "Q6_K"])
    assert not llama_probe.can_repack(["Q4_K"])
    said = capsys.readouterr().err
    assert said.count("fails on repacked weights (Q4_K: SIGSEGV)") == 1
    assert "docs/llama.md" in said
    assert llama_probe.can_repack(["F32", "F16", "Q6_K"]), "the control: a file without them"
    assert not llama_probe.can_repack(["IQ1_S"]), "one that was not tried is not trusted"
    assert runs.read_text() == "x" * 4, (
        "one child for each death, one behind the last, one for weights as stored"
    )


def test_one_that_dies_either_way_is_a_sentence(trial: Trial) -> None:
    trial('if kind == "Q8_0": die(signal.SIGILL)')
    with pytest.raises(PartError) as refused:
        llama_probe.can_repack(["F16", "Q8_0"])
    assert str(refused.value).startswith(
        "llama.cpp does not compute on this machine; got SIGILL with Q8_0 tensors. Compile it on"
        " this"
    )
    assert f"CXXFLAGS='{llama_probe.COMPILER_FLAGS}' pip install --force-reinstall" in str(
        refused.value
    )
    assert llama_probe.can_repack(["F16", "Q4_K"])


def test_one_that_dies_when_it_is_loaded_is_a_sentence(trial: Trial) -> None:
    runs = trial(first="die(signal.SIGILL)")
    with pytest.raises(PartError, match="got SIGILL with F16 tensors"):
        llama_probe.require_llama_cpp()
    assert runs.read_text() == "xx", "not one for each type"


def test_one_that_hangs_is_a_sentence(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(llama_probe, "WORKER_TIMEOUT", 2.0)
    trial('if kind == "Q4_K": time.sleep(3600)')
    with pytest.raises(
        PartError,
        match="could not be tried on this machine with Q4_K tensors; got no answer in 2 s",
    ):
        llama_probe.can_repack(["Q4_K"])
    assert llama_probe.can_repack(["F16"])
    assert not (tmp_path / "cache").exists(), "the next one may not hang"


@pytest.mark.parametrize("cosine", ["0.01", "-0.9", "float('nan')"])
def test_wrong_answers_are_no_answers(cosine: str, trial: Trial) -> None:
    trial(f'if kind == "Q4_K": cosine = {cosine} if repack else 0.9')
    assert not llama_probe.can_repack(["Q4_K"])
    trial(f'if kind == "Q4_K": cosine = {cosine}')
    with pytest.raises(
        PartError,
        match=r"got wrong answers \(cosine (0.01|-0.9|nan) with float32\) with Q4_K tensors",
    ):
        llama_probe.can_repack(["Q4_K"])


def test_a_trial_that_cannot_be_made_says_why(trial: Trial, tmp_path: Path) -> None:
    trial(first="raise OSError('no space left')")
    with pytest.raises(PartError, match="could not be tried .*got OSError: no space left"):
        llama_probe.require_llama_cpp()
    assert not (tmp_path / "cache").exists()


def test_what_was_found_is_kept_for_this_llama_cpp_alone(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = trial('if kind == "Q8_0" and repack: die(signal.SIGILL)')

    def children() -> int:
        before = len(runs.read_text()) if runs.is_file() else 0
        llama_probe._cached_probe_results.cache_clear()
        assert not llama_probe.can_repack(["Q8_0"])
        return len(runs.read_text()) - before

    assert children() == 3
    assert children() == 0
    kept = next((tmp_path / "cache").iterdir())
    kept.write_text("{")
    assert children() == 3
    for damaged in ("[]", "{}", '{"F16": 7}'):
        kept.write_text(damaged)
        assert children() == 3
    with monkeypatch.context() as patch:
        patch.setattr(llama_probe, "_llama_cpp_version", lambda: "another")
        assert children() == 3
    with monkeypatch.context() as patch:
        patch.setattr(llama_probe, "_cpu_model", lambda: ["another"])
        assert children() == 3
    library = tmp_path / "lib" / "libggml-cpu.so"
    library.parent.mkdir()
    library.write_bytes(b"x")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(library.parent))
    assert children() == 3
    assert children() == 0
    os.utime(library, (1, 1))
    assert children() == 3


def test_a_cache_that_cannot_be_written_only_costs_time(trial: Trial, tmp_path: Path) -> None:
    runs = trial()
    (tmp_path / "cache").write_text("a file")
    assert llama_probe.can_repack(["F16"])
    assert runs.read_text() == "x"


def test_the_server_leaves_weights_as_stored_where_it_must(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    (tmp_path / "model-q8_0.gguf").write_bytes(b"x")
    for repacked, called in ((True, "-m"), (False, "-c")):
        monkeypatch.setattr(servers, "can_repack_file", lambda path, said=repacked: said)
        words = servers._llama_server(tmp_path, 1).command
        assert words[1] == called
        assert words[words.index("--model") + 1].endswith("model-q8_0.gguf")
    compile(words[2], "server", "exec")
    assert "use_extra_bufts = False" in words[2]


# --- the real one ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trial's own model in float32, and as q8_0 and q4_k_m are."""
    folder = tmp_path_factory.mktemp("made")
    llama_probe.require_llama_cpp()
    llama_probe_worker.write_probe_model(folder / "F32.gguf")
    for kind in ("Q8_0", "Q4_K"):
        assert llama_probe_worker.quantize_probe(
            folder / "F32.gguf", folder / f"{kind}.gguf", llama_probe_worker.FILE_TYPES[kind]
        )
    return folder


def logits(path: Path) -> list[Any]:
    """After a batch, and after one more token."""
    context = LlamaContext(path, window=64, sequences=1, threads=1)
    found = [
        context.decode(0, 0, llama_probe_worker.TOKENS),
        context.decode(0, len(llama_probe_worker.TOKENS), [5]),
    ]
    context.close()
    return found


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_quantised_weights_answer_on_this_machine(
    kind: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the trial's model is no Phi-3
    monkeypatch.setattr("phisense.chat.llama_context.validate_gguf", lambda path: None)
    assert llama_probe.tensor_types(made / f"{kind}.gguf") == {"F32", kind}
    for right, found in zip(logits(made / "F32.gguf"), logits(made / f"{kind}.gguf"), strict=True):
        assert llama_probe_worker.cosine_similarity(right, found) > 0.9
        assert llama_probe_worker.cosine_similarity(np.roll(right, 7), found) < 0.3, "the control"


def test_every_type_that_is_tried_answers_in_some_way_here() -> None:
    found = llama_probe.probe_results()
    assert set(found) == set(llama_probe.PROBED_TYPES) == set(llama_probe_worker.FILE_TYPES)
    assert {ways[1] for ways in found.values()} == {llama_probe.PROBE_OK}


def test_no_gguf_file_has_no_types(tmp_path: Path) -> None:
    for content in (b"", b"x", b"GGUF", b"GGUF" + bytes(40), b"GGUF\x03\0\0\0" + b"\xff" * 40):
        (tmp_path / "it.gguf").write_bytes(content)
        assert llama_probe.tensor_types(tmp_path / "it.gguf") == set()


def test_the_makefile_compiles_as_the_sentence_says() -> None:
    assert llama_probe.COMPILER_FLAGS in (Path(__file__).parents[2] / "Makefile").read_text()
    assert (
        llama_probe.COMPILER_FLAGS in (Path(__file__).parents[2] / "docs" / "llama.md").read_text()
    )
