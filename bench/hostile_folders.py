"""Model folders and GGUF files as somebody with bad intentions makes them, opened and asked.
`python bench/hostile_folders.py --help`

Each folder is a good one with one thing changed (tests/hostile_folders.py), opened in a process of
its own with limits of time and memory. It must be refused with one of phisense's errors, or answer
as the good one does. With --without-opener the same folders are opened by plain transformers and by
llama.cpp as they are: what the opener is for. With --parts it is a tower, a Whisper and a converted
Whisper that are spoilt, small ones that are made here. Ends with one line of JSON for each kind.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from PIL import Image
from tests import hostile_folders as made

from phisense.conversations import IMAGE, Message
from phisense.errors import PhisenseError

LONGEST, LATEST, MOST_ADDRESSES = 30, 300, 24 << 30  # seconds of the processor, of the clock; bytes
ALIKE = 1e-3
Outcome = tuple[str, str, Any]


def asked(folder: Path) -> Any:
    """The logits after a question about a picture, by phisense as it is."""
    from phisense.model import load_model

    built = load_model(folder, "cpu", torch.float32)
    picture = Image.effect_noise((60, 48), 90).convert("RGB").point(lambda value: value // 2)
    picture = Image.linear_gradient("L").resize((60, 48)).convert("RGB")
    with torch.inference_mode():
        batch = built.inputs(
            [[Message("user", f"{IMAGE}\nWhat colour is it?")]], [[picture]], supervised=False
        ).to_kwargs()
        built.model.generate(**batch, max_new_tokens=2, do_sample=False)
        return built.model(**batch).logits[0, -1].float().numpy()


def asked_plainly(folder: Path) -> Any:
    """The same by transformers alone, as `load_model` did it without an opener."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    picture = Image.linear_gradient("L").resize((60, 48)).convert("RGB")
    text = f"<|user|>\n{IMAGE}\nWhat colour is it?<|end|>\n<|assistant|>\n"
    with torch.inference_mode():
        batch = processor(images=[picture], text=[text], return_tensors="pt")
        model.generate(**batch, max_new_tokens=2)
        return model(**batch).logits[0, -1].float().numpy()


def asked_gguf(folder: Path) -> Any:
    from phisense.chat.llama_engine import LlamaEngine

    engine = LlamaEngine.open(folder, threads=1)
    return engine.context.decode(
        0, 0, engine.prompt.render_for_completion([Message("user", "What colour is it?")], [])
    )


def asked_gguf_plainly(folder: Path) -> Any:
    """By llama.cpp as it is: nothing is judged before."""
    from phisense.chat import llama_context, llama_engine

    about = json.loads((folder / "manifest.json").read_bytes())["about"]
    llama_context.validate_gguf = llama_context.check_llama_opens = lambda path: None  # type: ignore[assignment]
    llama_engine.validate_folder = lambda folder: None  # type: ignore[assignment]
    context = llama_context.LlamaContext(folder / about["file"], window=256, sequences=1, threads=1)
    return context.decode(0, 0, [7, 8, 9, 10])


def asked_tower(folder: Path) -> Any:
    """What a vision part sees of a picture."""
    from phisense.vision.encoders.encode import Encoder

    return (
        Encoder(str(folder))
        .encode([Image.linear_gradient("L").resize((60, 48)).convert("RGB")])
        .float()
        .numpy()
    )


def asked_tower_plainly(folder: Path) -> Any:
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(
        [Image.linear_gradient("L").resize((60, 48)).convert("RGB")], return_tensors="pt"
    )["pixel_values"]
    with torch.inference_mode():
        return model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].float().numpy()


def asked_ears(folder: Path) -> Any:
    """What a speech part makes of a recording: the encoder's numbers, and the letters of what it
    heard.
    """
    from phisense.errors import SoundError
    from phisense.practice.spoken import spoken_questions
    from phisense.speech import Transcriber

    ears = Transcriber(
        folder,
        cache=folder.parent / "cache",
        device="cpu",
        compute_type="float32",
        threads=1,
        beam_size=1,
    )
    try:
        heard = ears.transcribe(
            spoken_questions()[0].path, language="en", task="transcribe", vad=False
        ).text
    except SoundError:  # another model may hear nothing
        heard = ""
    return _heard(ears._model, heard)


def asked_ears_plainly(folder: Path) -> Any:
    """By faster-whisper and CTranslate2's converter as they are."""
    from ctranslate2.converters import TransformersConverter

    from phisense.practice.spoken import spoken_questions

    # faster-whisper, with windows of this part's length
    from phisense.speech.transcriber import _Whisper as WhisperModel

    if not (folder / "model.bin").is_file():
        copied = ["tokenizer.json", "preprocessor_config.json"]
        out = tempfile.mkdtemp(dir=folder.parent)
        folder = Path(
            TransformersConverter(str(folder), copy_files=copied).convert(
                out, quantization="float16", force=True
            )
        )
    model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    segments, _ = model.transcribe(
        str(spoken_questions()[0].path), language="en", beam_size=1, temperature=0.0
    )
    return _heard(model, "".join(one.text for one in segments))


def _heard(model: Any, text: str) -> Any:
    import numpy as np

    bins = int(model.feature_extractor.mel_filters.shape[0])
    frames = int(model.feature_extractor.nb_max_frames)
    sound = np.sin(np.arange(bins * frames, dtype=np.float32)).reshape(1, bins, frames)
    return np.concatenate(
        [np.array(model.encode(sound[0])).ravel(), np.array([ord(one) for one in text], np.float32)]
    )


def make_parts(folder: Path) -> dict[str, Path]:
    """A good one of each kind."""
    import shutil

    from tests.tiny import make_vision
    from transformers import WhisperForConditionalGeneration

    from phisense.practice import spoken
    from phisense.speech.ctranslate2_model import ctranslate2_folder

    shipped = spoken.RECORDINGS_FOLDER.parent / "speech"
    # into one file
    WhisperForConditionalGeneration.from_pretrained(shipped).save_pretrained(folder / "whisper")
    for path in (
        *shipped.glob("tokenizer*.json"),
        shipped / "preprocessor_config.json",
        shipped / "generation_config.json",
    ):
        shutil.copy(path, folder / "whisper")
    shutil.copytree(ctranslate2_folder(folder / "whisper", folder / "cache"), folder / "converted")
    (folder / "converted" / "manifest.json").unlink()  # as others' have none
    return {
        "tower": make_vision(folder / "tower"),
        "whisper": folder / "whisper",
        "converted": folder / "converted",
    }


ASKED = {
    "folder": (asked, asked_plainly),
    "gguf": (asked_gguf, asked_gguf_plainly),
    "tower": (asked_tower, asked_tower_plainly),
    "whisper": (asked_ears, asked_ears_plainly),
    "converted": (asked_ears, asked_ears_plainly),
}


def verbs(world: Path) -> dict[str, Callable[[Path], Any]]:
    """What a user types, and a recipe's other ways into a folder; `world` has `data/` with
    questions and pictures.
    """
    from phisense.cli import run_verb
    from phisense.model import Phi3WithProjector
    from phisense.recipe import Projector

    questions, images = world / "data" / "heldout.jsonl", world / "data" / "images"
    about = ("--data", questions, "--images", images, "--limit", 2)
    picture = next(images.glob("*.jpg"))
    say = ("--question", "What colour is it?")

    def servers(folder: Path) -> None:
        from phisense.chat.servers import choose_server

        choose_server(folder, port=0)

    return {
        "ask": lambda folder: run_verb(
            "ask", folder, *say, "--image", picture, "--max-new-tokens", 2
        ),
        "ask --quantize": lambda folder: run_verb(
            "ask", folder, *say, "--quantize", "--max-new-tokens", 2
        ),
        "evaluate": lambda folder: run_verb(
            "evaluate", folder, *about, "--condition", "real", "--out", folder.parent / "report"
        ),
        "export": lambda folder: run_verb(
            "export", folder, *about, "--quant", "q8_0", "--out", folder.parent / "gguf"
        ),
        "deploy": lambda folder: run_verb(
            "deploy", folder, "--space", "a/b", "--dry-run", folder.parent / "space"
        ),
        "import": lambda folder: run_verb("import", folder, "--out", folder.parent / "imported"),
        "lmms": lambda folder: run_verb(
            "evaluate", folder, "--lmms-eval", "pope", "--out", folder.parent / "lmms"
        ),
        "serve": servers,
        "parts of a recipe": lambda folder: (
            Phi3WithProjector.assemble(str(folder), str(folder), Projector(), start=str(folder))
            and None
        ),
    }


def try_verbs(world: Path, good: Path, count: int, seed: int) -> dict[str, Any]:
    """Every verb on each folder: whether it ends well or in a sentence. What its answers are worth
    the other mode tells.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    peak = 0
    with tempfile.TemporaryDirectory(dir=good.parent) as here:
        for number in range(count):
            for i, (verb, ask) in enumerate(verbs(world).items()):
                beside = Path(here) / f"{number}-{i}"
                beside.mkdir()
                case = made.hostile(good, beside / "model", number, seed)
                (what, why, _), memory, seconds = in_child(
                    lambda folder, ask=ask: ask(folder) and None, beside / "model"
                )
                what = "ran code" if (beside / "was-run").exists() else what
                outcomes[what] += 1
                peak = max(peak, memory)
                print(
                    f"{number:4} {verb:17} {what:9} {seconds:5.1f} s {case.manifest:5}"
                    f" {made.readable(case.name)}  | {why[:200]}"
                )
    return {"kind": "verbs", **outcomes, "peak_gb": round(peak / 1e9, 2)}


def in_child(ask: Callable[[Path], Any], folder: Path) -> tuple[Outcome, int, float]:
    """What came of it, the peak of the child's memory in bytes, and seconds."""
    receiver, sender = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # a machine that others use makes the clock a poor judge
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST + 5))
        signal.alarm(LATEST)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            told: Outcome = ("opened", "", ask(folder))
        except PhisenseError as error:
            told = ("refused", str(error), None)
        except BaseException as error:
            told = (
                "traceback",
                "".join(traceback.format_exception_only(error)).strip()[:300],
                None,
            )
        with os.fdopen(sender, "wb") as file:
            pickle.dump((told, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), file)
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        data = file.read()
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - began
    below = 0  # what it tried in a process of its own
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        said = (
            ("hang", f"no end in {LONGEST} s", None)
            if number in (signal.SIGALRM, signal.SIGXCPU)
            else ("abort", signal.Signals(number).name, None)
        )
    else:
        said, below = pickle.loads(data) if data else (("abort", "an exit without a word", None), 0)
    return said, max(used.ru_maxrss, below) * 1024, seconds


def verdict(case: made.Case, said: Outcome, right: Any, beside: Path) -> tuple[str, str]:
    what, why, found = said
    if (beside / "was-run").exists():
        return "ran code", why
    if what != "opened":
        return what, why
    same = found.shape == right.shape and bool(abs(found - right).max() <= ALIKE * right.std())
    if same:
        return "right", ""
    if not torch.tensor(found).isfinite().all():
        return "wrong", "no numbers"
    return ("another model", "") if case.may_differ else ("wrong", "other logits")


def try_all(
    kind: str, good: Path, count: int, seed: int, without: bool, only: int | None
) -> dict[str, Any]:
    gguf = kind == "gguf"
    ask = ASKED[kind][without]
    outcomes: collections.Counter[str] = collections.Counter()
    peak, slowest = 0, 0.0
    with tempfile.TemporaryDirectory(dir=good.parent) as here:
        said, usual, _ = in_child(ask, good)
        if said[0] != "opened":
            raise SystemExit(f"the good folder does not open: {said[1]}")
        for number in [only] if only is not None else range(count):
            beside = Path(here) / str(number)
            beside.mkdir()
            case = (made.hostile_gguf if gguf else made.hostile)(
                good, beside / "model", number, seed
            )
            found, memory, seconds = in_child(ask, beside / "model")
            came, why = verdict(case, found, said[2], beside)
            outcomes[came] += 1
            peak, slowest = max(peak, memory), max(slowest, seconds)
            print(
                f"{number:4} {came:13} {seconds:5.1f} s {memory / 1e9:4.1f} GB  {case.manifest:5}"
                f" {made.readable(case.name)}  | {why[:200]}"
            )
    return {
        "kind": kind,
        "opener": not without,
        **outcomes,
        "peak_gb": round(peak / 1e9, 2),
        "usual_gb": round(usual / 1e9, 2),
        "slowest": round(slowest, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", help="a model folder, as merge writes it")
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=("tower", "whisper", "converted"),
        help="parts instead of a model folder; all by default",
    )
    parser.add_argument("--gguf", type=Path, help="what export wrote of it")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one of them")
    parser.add_argument(
        "--verbs",
        type=Path,
        metavar="WORLD",
        help="every verb on each; WORLD is what phisense demo --out wrote",
    )
    parser.add_argument(
        "--without-opener",
        action="store_true",
        help="the same by plain transformers and llama.cpp: the control",
    )
    how = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    import transformers.models.auto.modeling_auto
    import transformers.models.llava.modeling_llava  # noqa: F401, once for all children

    import phisense.model.folder  # noqa: F401

    if how.verbs:
        print(json.dumps(try_verbs(how.verbs.resolve(), how.model.resolve(), how.count, how.seed)))
        return
    if how.parts is not None:
        with tempfile.TemporaryDirectory() as here:
            for kind, good in make_parts(Path(here).resolve()).items():
                if kind in (how.parts or ASKED):
                    print(
                        json.dumps(
                            try_all(kind, good, how.count, how.seed, how.without_opener, how.only)
                        )
                    )
        return
    if how.model is None:
        parser.error("name a model folder, or --parts")
    kinds = [("gguf", how.gguf)] if how.gguf else [("folder", how.model)]
    if how.gguf:
        from phisense.chat.llama_probe import probe_results

        probe_results()
    for kind, good in kinds:
        print(
            json.dumps(
                try_all(kind, good.resolve(), how.count, how.seed, how.without_opener, how.only)
            )
        )


if __name__ == "__main__":
    main()
