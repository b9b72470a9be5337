"""A model for everybody: what the card and the Space say, what is uploaded and what is not, and a
page that opens from the folder alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import threading
import time
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, SpaceCard

from phisense import artifacts
from phisense.chat import ChatSession, Sampling
from phisense.chat.torch_engine import TorchEngine
from phisense.chat.zerogpu import ZeroGPUEngine
from phisense.errors import ArtifactError, PhisenseError, UsageError
from phisense.vision.image_io import open_image

from ..conftest import ROOT


@pytest.fixture(scope="module")
def dry(model: Path, world: Path, verb: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deploy") / "out"
    words = (
        "--licence",
        "mit",
        "--base-model",
        "microsoft/Phi-3.5-mini-instruct",
        "--dataset",
        "liuhaotian/LLaVA-Instruct-150K",
    )
    verb(
        "deploy",
        model,
        "--space",
        "someone/practice",
        "--dry-run",
        out,
        *words,
        "--report",
        world / "reports" / "heldout",
    )
    return out


def test_the_model_card_says_what_the_reports_say(dry: Path, model: Path, world: Path) -> None:
    card = ModelCard.load(dry / "model" / "README.md")
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["license"], data["library_name"]) == (
        "image-text-to-text",
        "mit",
        "transformers",
    )
    assert data["base_model"] == ["microsoft/Phi-3.5-mini-instruct"]
    assert data["datasets"] == ["liuhaotian/LLaVA-Instruct-150K"]
    scores = json.loads((world / "reports" / "heldout" / "scores.json").read_text())
    for condition in ("real", "blind", "shuffled"):
        assert f"{scores[condition]['figures']['accuracy']['value']:.3f} (" in card.text
    merge = json.loads((model / "merge_report.json").read_text())
    assert f"| this model | {merge['merged']['loss']:.4f} |" in card.text
    assert "1 file\n" in card.text


def test_what_nobody_told_is_not_in_the_card(model: Path, verb: Any, tmp_path: Path) -> None:
    verb("deploy", model, "--space", "someone/practice", "--dry-run", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "model" / "README.md")
    assert not {"license", "base_model", "datasets"} & set(card.data.to_dict())
    assert "licence: not stated" in card.text
    assert "No evaluation was published" in card.text


def test_the_front_matter_and_the_requirements(dry: Path) -> None:
    import gradio

    data = SpaceCard.load(dry / "space" / "README.md").data.to_dict()
    assert data == {
        "title": "practice",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": "3.12",
        "app_file": "app.py",
        "license": "mit",
        "models": ["someone/practice"],
        "suggested_hardware": "cpu-basic",
    }
    lines = (dry / "space" / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("--")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned), pinned
    assert {"torch", "gradio", "faster-whisper"} <= {line.split("==")[0] for line in pinned}
    assert not {"llama-cpp-python", "pytest", "phisense"} & {line.split("==")[0] for line in pinned}
    compile((dry / "space" / "app.py").read_text(), "app.py", "exec")


def test_nothing_of_this_machine_is_in_it(dry: Path, model: Path) -> None:
    """The control: the model's own manifest does say where the speech part lies here."""
    speech = str(artifacts.read_manifest(model, kind="model folder")["speech"])
    assert speech.startswith("/")
    texts = [
        p.read_text(errors="replace")
        for p in dry.rglob("*")
        if p.suffix in (".json", ".md", ".txt", ".py")
    ]
    assert len(texts) > 100
    assert not [text for text in texts if speech in text or str(model) in text or str(dry) in text]
    artifacts.read_manifest(dry / "model", kind="model folder")  # and it is still whole


def test_only_what_the_manifest_names_goes_along(model: Path, verb: Any, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / ".env").write_text("HF_TOKEN=hf_secret")
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("url = https://me:hf_secret@huggingface.co")
    result = verb("deploy", copy, "--space", "someone/practice", "--dry-run", tmp_path / "out")
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [p for p in written if ".env" in p.name or ".git" in p.parts]
    assert not [p for p in written if b"hf_secret" in p.read_bytes()]
    assert set(result["files"]) == {
        p.relative_to(tmp_path / "out").as_posix() for p in written if p.parent != tmp_path / "out"
    }


def gguf_folder(folder: Path) -> Path:
    with artifacts.staged_artifact(
        folder, kind="gguf folder", about={"recipe": "practice"}
    ) as aside:
        (aside / "model-q4_k_m.gguf").write_bytes(b"GGUF")
        (aside / "config.json").write_text("{}")
    return folder


def test_parts_from_the_hub_are_named(model: Path, verb: Any, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    made_from = ["microsoft/Phi-3.5-mini-instruct", "openai/clip-vit-large-patch14-336"]
    manifest["about"] |= {"made_from": made_from, "speech": "openai/whisper-small"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    verb("deploy", copy, "--space", "someone/practice", "--dry-run", tmp_path / "out")
    assert (
        ModelCard.load(tmp_path / "out" / "model" / "README.md").data.to_dict()["base_model"]
        == made_from
    )
    assert (
        "Transcriber('openai/whisper-small')" in (tmp_path / "out" / "space" / "app.py").read_text()
    )
    assert not (tmp_path / "out" / "space" / "speech").exists()


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requirements of this tree's pyproject.toml, whenever it was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    lines += [
        f'{line}; extra == "{extra}"'
        for extra, group in project["optional-dependencies"].items()
        for line in group
    ]
    monkeypatch.setattr("phisense.publish.space.requires", lambda name: lines)
    return lines


def test_an_installation_older_than_the_source(
    declared: list[str], model: Path, verb: Any, tmp_path: Path
) -> None:
    declared[:] = [line for line in declared if "speech" not in line]
    with pytest.raises(PhisenseError, match="got no extra speech. pip install it again"):
        verb("deploy", model, "--space", "a/b", "--dry-run", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("declared")
def test_a_gguf_folder_is_run_in_llama(model: Path, verb: Any, tmp_path: Path) -> None:
    gguf = gguf_folder(tmp_path / "gguf")
    verb(
        "deploy",
        model,
        "--gguf",
        gguf,
        "--space",
        "someone/practice",
        "--dry-run",
        tmp_path / "both",
    )
    app = (tmp_path / "both" / "space" / "app.py").read_text()
    assert "open_engine(model / 'gguf')" in app
    assert 'allow_patterns="gguf/*"' in app
    assert "spaces" not in app
    assert (tmp_path / "both" / "model" / "gguf" / "model-q4_k_m.gguf").is_file()
    required = (tmp_path / "both" / "space" / "requirements.txt").read_text().splitlines()
    compiled = next(line for line in required if line.startswith("llama-cpp-python"))
    assert compiled.endswith(" --config-settings=cmake.define.GGML_NATIVE=OFF"), (
        "it is built on another machine than it runs on"
    )
    verb("deploy", gguf, "--space", "someone/practice", "--dry-run", tmp_path / "alone")
    assert "open_engine(model)" in (tmp_path / "alone" / "space" / "app.py").read_text()
    assert (
        ModelCard.load(tmp_path / "alone" / "model" / "README.md").data.to_dict()["library_name"]
        == "llama.cpp"
    )


def test_zero_gpu_takes_a_torch_that_it_has(model: Path, verb: Any, tmp_path: Path) -> None:
    verb(
        "deploy",
        model,
        "--space",
        "someone/practice",
        "--hardware",
        "zero-a10g",
        "--dry-run",
        tmp_path / "out",
    )
    assert (
        "torch>=2.9,<2.12"
        in (tmp_path / "out" / "space" / "requirements.txt").read_text().splitlines()
    )
    assert (
        SpaceCard.load(tmp_path / "out" / "space" / "README.md").data.to_dict()[
            "suggested_hardware"
        ]
        == "zero-a10g"
    )


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        (["--space", "nobody"], UsageError, "no name of a Space on the hub; got nobody"),
        (["--space", "a/b/c"], UsageError, "no name of a Space on the hub"),
        (["--space", "a/--b"], UsageError, "no name of a Space on the hub"),
        (
            ["--space", "a/b", "--hardware", "abacus"],
            UsageError,
            "no such hardware; got abacus; wanted cpu-basic",
        ),
        (
            ["--space", "a/b", "--base-model", "../x"],
            UsageError,
            "base model or data set on the hub; got ../x",
        ),
        (["--space", "a/b", "--report", "nope"], ArtifactError, "nope is not a finished report"),
        (
            ["--space", "a/b", "--gguf", "nope"],
            ArtifactError,
            "nope is not a finished model folder",
        ),
    ],
)
def test_each_refusal_is_a_sentence_and_writes_nothing(
    model: Path,
    verb: Any,
    tmp_path: Path,
    words: list[str],
    kind: type[PhisenseError],
    sentence: str,
) -> None:
    with pytest.raises(kind, match=re.escape(sentence)):
        verb("deploy", model, *words, "--dry-run", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_refusals(
    model: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(
        UsageError,
        match="would be overwritten; got files of another making; wanted nothing there, or a space",
    ):
        verb("deploy", model, "--space", "a/b", "--dry-run", tmp_path / "mine")
    with pytest.raises(UsageError, match="would replace the model"):
        verb("deploy", model, "--space", "a/b", "--dry-run", model)
    with pytest.raises(UsageError, match="holds no GGUF files"):
        verb("deploy", model, "--space", "a/b", "--gguf", model, "--dry-run", tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        verb("deploy", broken, "--space", "a/b", "--dry-run", tmp_path / "out")
    monkeypatch.setattr("phisense.publish.space.MAX_CPU_BYTES", 1e6)
    with pytest.raises(UsageError, match="too large for a Space without a GPU"):
        verb(
            "deploy",
            model,
            "--space",
            "a/b",
            "--hardware",
            "cpu-basic",
            "--dry-run",
            tmp_path / "out",
        )
    verb("deploy", model, "--space", "a/b", "--dry-run", tmp_path / "out")
    assert "suggested_hardware: zero-a10g" in (tmp_path / "out" / "space" / "README.md").read_text()


class Hub:
    """What HfApi would have done; each call may be made to fail."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls, self.files = fails, [], {}

    def _do(self, what: str, about: dict[str, Any]) -> None:
        self.calls.append((what, about))
        if what == self.fails:
            raise OSError("403 Forbidden: you may not write there.\nRequest id 7")

    def create_repo(self, repo: str, **about: Any) -> None:
        self._do(f"create {about['repo_type']}", {"repo": repo, **about})

    def upload_folder(self, *, folder_path: Path, **about: Any) -> Any:
        self._do(f"upload {about['repo_type']}", about)
        self.files[about["repo_type"]] = {
            p.relative_to(folder_path).as_posix(): p.read_bytes()
            for p in folder_path.rglob("*")
            if p.is_file()
        }
        return SimpleNamespace(oid="c0ffee")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(fails: str = "", token: str | None = "hf_secret") -> Hub:
        made = Hub(fails)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        return made

    return make


def test_an_upload(hub: Callable[..., Hub], model: Path, verb: Any) -> None:
    made, before = hub(), sorted(model.parent.iterdir())
    result = verb("deploy", model, "--space", "someone/practice", "--private")
    assert result["url"] == "https://huggingface.co/spaces/someone/practice"
    assert [what for what, _ in made.calls] == [
        "create model",
        "upload model",
        "create space",
        "upload space",
    ]
    assert all(about["private"] for what, about in made.calls if what.startswith("create"))
    assert "space_hardware" not in made.calls[2][1], (
        "what may cost money is only rented if asked for"
    )
    assert (
        b"snapshot_download('someone/practice', revision='c0ffee')" in made.files["space"]["app.py"]
    )
    assert {f"model/{name}" for name in made.files["model"]} | {
        f"space/{name}" for name in made.files["space"]
    } == set(result["files"])
    assert not [
        name
        for files in made.files.values()
        for name, data in files.items()
        if b"hf_secret" in data
    ]
    assert sorted(model.parent.iterdir()) == before
    verb("deploy", model, "--space", "someone/practice", "--hardware", "t4-small")
    assert made.calls[-2][1]["space_hardware"] == "t4-small"


def test_without_a_token_nothing_is_asked_of_the_hub(
    hub: Callable[..., Hub], model: Path, verb: Any
) -> None:
    made = hub(token=None)
    with pytest.raises(
        UsageError, match="no Hugging Face token here. Make one that may write"
    ) as caught:
        verb("deploy", model, "--space", "someone/practice")
    assert caught.value.exit_code == 2
    assert made.calls == []


@pytest.mark.parametrize(
    ("step", "state"),
    [
        ("create model", "nothing was uploaded"),
        ("upload model", "nothing was uploaded"),
        ("create space", "the model someone/practice is there, the Space is not finished"),
        ("upload space", "the model someone/practice is there, the Space is not finished"),
    ],
)
def test_a_hub_that_refuses(
    hub: Callable[..., Hub], model: Path, verb: Any, step: str, state: str
) -> None:
    hub(step)
    before = sorted(model.parent.iterdir())
    with pytest.raises(
        PhisenseError,
        match=f"the hub refused; {state}; got 403 Forbidden: you may not write there. Mend",
    ) as caught:
        verb("deploy", model, "--space", "someone/practice")
    assert "disk" not in str(caught.value)
    assert sorted(model.parent.iterdir()) == before


def lend(task: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """As ZeroGPU does: a forked process, everything pickled on the way; whoever leaves ends it."""
    context = multiprocessing.get_context("fork")

    def lent(*args: Any) -> Iterator[str]:
        asked, said = context.SimpleQueue(), context.SimpleQueue()

        def work() -> None:
            for piece in task(*asked.get()):
                said.put(piece)
            said.put(None)

        process = context.Process(target=work, daemon=True)
        process.start()
        asked.put(args)
        try:
            while (piece := said.get()) is not None:
                yield piece
        finally:
            process.kill()
            process.join()

    return lent


def test_a_lent_gpu_answers_as_the_engine_does(model: Path, world: Path) -> None:
    engine = TorchEngine.open(model, "cpu")
    lent = ZeroGPUEngine(engine, lend)
    picture = open_image(world / "data" / "images" / "heldout-00003.jpg")
    own, loan = ChatSession(engine, Sampling(32)), ChatSession(lent, Sampling(32))
    for session in (own, loan):
        session.set_image(picture)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    try:
        for question in ("Describe the picture.", "How many things are there?"):
            assert "".join(loan.ask(question)) == "".join(own.ask(question)) != ""
        stop = threading.Event()
        pieces = loan.ask("Describe the picture.", stop)
        next(pieces)
        stop.set()
        assert list(pieces) == []
        assert not multiprocessing.active_children()
    finally:
        torch.set_num_threads(threads)
    assert lent.count_tokens([], []) == engine.count_tokens([], [])
    # the control: an event does not pass
    with pytest.raises((TypeError, RuntimeError), match="pickle"):
        next(lend(lambda event: iter(["x"]))(threading.Event()))


@pytest.mark.slow
@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize("engine", ["torch", "llama"])
def test_the_folder_alone_opens_a_page_that_answers(
    engine: str, model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    """In an environment that has what requirements.txt names and no phisense: nothing but the dry
    run's folder, and no network.
    """
    from gradio_client import Client, handle_file

    words: list[object] = ["--space", "someone/practice", "--dry-run", tmp_path / "out"]
    if engine == "llama":
        pytest.importorskip("llama_cpp", reason="no llama-cpp-python")
        pytest.importorskip("phisense.publish.export", reason="no phisense export")
        verb("export", model, "--to", "gguf", "--quant", "f16", "--out", tmp_path / "gguf")
        words += ["--gguf", tmp_path / "gguf"]
    verb("deploy", model, *words)
    alone = tmp_path / "elsewhere"
    (tmp_path / "out").rename(alone)
    (alone / "space" / "spaces.py").write_text(SPACES)
    python, clean = bare_environment(tmp_path / "env")
    told = [
        python,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "-r",
        alone / "space" / "requirements.txt",
    ]
    there = subprocess.run(told, capture_output=True, text=True, env=clean, check=False)
    assert there.returncode == 0, there.stdout + there.stderr
    assert "Collecting" not in there.stdout, "every pin is the version that is installed"
    none = subprocess.run(
        [python, "-c", "import phisense"],
        capture_output=True,
        text=True,
        env=clean,
        cwd=tmp_path,
        check=False,
    )
    assert "No module named 'phisense'" in none.stderr
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    env = {
        **clean,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "SPACES_ZERO_GPU": "1",
    }
    log = tmp_path / "log.txt"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [python, "app.py"], cwd=alone / "space", env=env, stdout=said, stderr=said
        ) as page,
    ):
        try:
            client = connect(Client, f"http://127.0.0.1:{port}", page, log)
            picture = world / "data" / "images" / "heldout-00003.jpg"
            messages = client.predict(
                "Describe the picture.", handle_file(str(picture)), 0, 256, api_name="/ask"
            )[0]
            content = messages[-1]["content"]
            answer = (
                content
                if isinstance(content, str)
                else "".join(part.get("text", "") for part in content)
            )
            assert (
                answer
                == verb("ask", model, "--image", picture, "-q", "Describe the picture.")["answer"]
            )
            assert (alone / "space" / "lent").is_file() == (engine == "torch"), (
                "the function that computes was decorated"
            )
        finally:
            page.terminate()


#: What ZeroGPU's package looks like from app.py; that it runs the function elsewhere is for the
#: test of `ZeroGPUEngine`.
SPACES = """
from pathlib import Path

def GPU(task):
    def lent(*args):
        Path("lent").touch()
        yield from task(*args)
    return lent
"""


def bare_environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """A virtual environment with the packages installed here, but not what their .pth files add,
    such as phisense.
    """
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    (site / "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python", {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH"
    }


def connect(client: Any, url: str, page: subprocess.Popen[bytes], log: Path) -> Any:
    for _ in range(600):
        assert page.poll() is None, log.read_text()
        try:
            return client(url, verbose=False)
        except Exception:  # not there yet
            time.sleep(0.2)
    raise AssertionError(log.read_text())
