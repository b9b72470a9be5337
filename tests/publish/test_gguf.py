"""A model folder as llama.cpp's files: they say what the model says, whichever tokenizer it has;
what cannot be said is not written.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from phisense import artifacts
from phisense.chat import ChatSession, Sampling, llama_probe
from phisense.chat.llama_engine import LlamaEngine
from phisense.conversations import Message, read_questions
from phisense.errors import ArtifactError, ExportError, PartError, UsageError
from phisense.model import Phi3WithProjector, load_model, save_model
from phisense.pipeline.progress import ignore
from phisense.pipeline.results import FileAgreement
from phisense.publish import gguf_agreement, gguf_projector, gguf_text
from phisense.publish.export import export
from phisense.publish.gguf_agreement import Asked
from phisense.publish.vocabulary import read_vocabulary
from phisense.publish.weights import WeightReader
from phisense.recipe import Projector
from phisense.vision.image_io import open_image

from ..hostile_folders import sign
from ..tiny import make_language, make_vision

pytestmark = pytest.mark.slow

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def make_model(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    rows: int = 768,
    long_rope: bool = False,
    projector: Projector | None = None,
) -> Path:
    """A tiny model folder with weights large enough that what it reads shows in its logits."""
    make_language(folder / "language", tokenizer=tokenizer, rows=rows, window=1024)
    make_vision(folder / "vision")
    if long_rope:
        path = folder / "language" / "config.json"
        config = json.loads(path.read_text())
        config.pop("rope_parameters", None)
        factors = {
            "short_factor": [1.0 + 0.3 * i for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
        }
        config |= {
            "max_position_embeddings": 8192,
            "original_max_position_embeddings": 1024,
            "rope_theta": 10000.0,
        }
        path.write_text(json.dumps(config | {"rope_scaling": {"type": "longrope", **factors}}))
    built = Phi3WithProjector.assemble(
        str(folder / "language"),
        str(folder / "vision"),
        projector or Projector(),
        device="cpu",
        dtype=torch.float32,
    )
    for name, weight in built.model.named_parameters():
        if name.endswith(
            ("qkv_proj.weight", "o_proj.weight", "lm_head.weight", "embed_tokens.weight")
        ):
            weight.data.mul_(12)
    with artifacts.staged_artifact(folder / "model", kind="model folder") as aside:
        save_model(built, aside)
    return folder / "model"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def asked() -> Asked:
    """Eight drawn questions, and eight others that calibrate."""
    drawn = gguf_agreement.drawn_set()
    compared, calibrating = (
        (questions[::3], pictures[::3])
        for questions, pictures in (drawn.compared, drawn.calibrating)
    )
    return Asked(compared, calibrating, drawn.calibrated_on)


def test_the_practice_model_says_the_same_in_float16(exported: Path) -> None:
    report = artifacts.read_json(exported / "export.json")
    assert report["f16"]["positions"] > 300
    assert report["f16"]["top1"] >= 0.99
    assert report["f16"]["kl"] <= 1e-3
    assert report["f16"]["same_answers"] >= 0.95
    artifacts.read_manifest(exported, kind="gguf folder", verify=True)


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_a_quantised_file_is_smaller_measured_and_answers(
    quant: str, model: Path, world: Path, tmp_path: Path, verb: Any
) -> None:
    data, images = world / "data" / "heldout.jsonl", world / "data" / "images"
    made = verb(
        "export",
        model,
        "--quant",
        quant,
        "--out",
        tmp_path / "made",
        "--data",
        data,
        "--images",
        images,
        "--limit",
        16,
    )
    assert made == {
        "folder": str(tmp_path / "made"),
        **artifacts.read_json(tmp_path / "made" / "export.json"),
    }
    assert made["questions"] == 16
    assert made["f16"]["kl"] < made[quant]["kl"] < 0.1
    assert made[quant]["same_answers"] >= 0.8
    assert not (tmp_path / "made" / "model-f16.gguf").exists()
    assert made["bytes"][f"model-{quant}.gguf"] < 0.6 * 2 * 2_965_000  # bytes a weight, of so many
    question = next(q for q in read_questions(data) if q.image)
    session = ChatSession(LlamaEngine.open(tmp_path / "made"), Sampling(max_new_tokens=16))
    session.set_image(open_image(images / str(question.image)))
    assert "".join(session.ask(question.text)).strip()


@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
def test_a_tiny_model_is_quantised_whatever_kernels_this_machine_has(
    quant: str, tiny: Path, asked: Any, tmp_path: Path
) -> None:
    made = export(tiny, tmp_path / "out", quant, asked, ignore)
    assert made.f16.kl <= 1e-4
    assert made.agreements[quant].kl < 0.5
    session = ChatSession(LlamaEngine.open(tmp_path / "out"), Sampling(max_new_tokens=4))
    session.set_image(asked.compared[1][0])
    assert list(session.ask("What is it?"))


def test_a_quantisation_that_this_machine_cannot_compute_is_refused_first(
    tiny: Path, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = {
        kind: ("SIGILL", "SIGILL") if kind == "Q6_K" else ("ok", "ok")
        for kind in llama_probe.PROBED_TYPES
    }
    monkeypatch.setattr(llama_probe, "probe_results", lambda: tried)
    with pytest.raises(
        PartError, match="llama.cpp does not compute on this machine; got SIGILL with Q6_K tensors"
    ):
        export(tiny, tmp_path / "out", "q4_k_m", asked, ignore)
    assert not list(tmp_path.iterdir())
    assert export(tiny, tmp_path / "out", "f16", asked, ignore).quant == "f16"


def test_an_export_that_says_something_else_is_refused(
    tiny: Path, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's key matrices turned about are enough, and nothing is written."""
    original = WeightReader.read

    def turned(weights: WeightReader, name: str) -> torch.Tensor:
        found = original(weights, name)
        return found.flip(0) if name == "layers.0.self_attn.qkv_proj.weight" else found

    monkeypatch.setattr(WeightReader, "read", turned)
    with pytest.raises(
        ExportError, match=r"the same likeliest token at .*wanted at least 99% and at most 0.001"
    ):
        export(tiny, tmp_path / "out", "f16", asked, ignore)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert export(tiny, tmp_path / "out", "f16", asked, ignore).f16.kl <= 1e-4


def test_long_rope_is_written_with_its_attention_factor(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = make_model(tmp_path / "long", long_rope=True)
    assert export(long, tmp_path / "out", "f16", asked, ignore).f16.kl <= 1e-4
    for name, without in (("rope_tensors", lambda *_: []), ("_attention_factor", lambda *_: 1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_text, name, without)
            with pytest.raises(ExportError):
                export(long, tmp_path / "control", "f16", asked, ignore)


def loaded(folder: Path, **how: Any) -> Any:
    return llama_cpp.Llama(
        str(next(folder.glob("model-*.gguf"))), n_ctx=512, n_threads=1, verbose=False, **how
    )


CONVERSATION = [
    Message("user", "What is  this, caf\u00e9 \u4e2d\U0001f600?\nA thing of 3,141 parts"),
    Message("assistant", "It isn't one."),
    Message("user", "Why not?"),
]


def same_ids(folder: Path, model: Path) -> None:
    """The chat template in the file, rendered and tokenised by llama.cpp alone, gives our prompt's
    ids.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    read = loaded(folder, vocab_only=True)
    messages = [{"role": m.role, "content": m.text} for m in CONVERSATION]
    template = ImmutableSandboxedEnvironment().from_string(read.metadata["tokenizer.chat_template"])
    text = template.render(messages=messages, add_generation_prompt=True)
    prompt = load_model(model, "cpu").prompt
    assert read.tokenize(
        text.encode(), add_bos=False, special=True
    ) == prompt.render_for_completion(CONVERSATION, [])
    for token in prompt.stop_ids:
        assert llama_cpp.llama_vocab_is_eog(
            llama_cpp.llama_model_get_vocab(read._model.model), token
        )
    assert not llama_cpp.llama_vocab_is_eog(
        llama_cpp.llama_model_get_vocab(read._model.model), prompt.image_id
    )


def test_llama_cpp_reads_the_practice_tokenizer_as_we_do(exported: Path, model: Path) -> None:
    same_ids(exported, model)


def test_llama_cpp_reads_phi_3s_tokenizer_as_we_do(
    fixtures: Path, asked: Any, tmp_path: Path
) -> None:
    real = make_model(
        tmp_path / "real", tokenizer=fixtures / "phi3-tokenizer", rows=32064, long_rope=True
    )
    report = export(real, tmp_path / "out", "f16", asked, ignore)
    assert report.f16.kl <= 1e-4
    same_ids(tmp_path / "out", real)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["about"]["name"] == "model"


def test_llama_cpps_own_handler_sees_with_the_mmproj(exported: Path, world: Path) -> None:
    """llama-cpp-python's multimodal handler, with nothing of ours; the control is another's
    picture.
    """
    from llama_cpp.llama_chat_format import MTMDChatHandler

    handler = MTMDChatHandler(str(exported / "mmproj-f16.gguf"), verbose=False)
    read = loaded(exported, chat_handler=handler)
    questions = [
        q
        for q in read_questions(world / "data" / "heldout.jsonl")
        if q.image and q.kind == "colour"
    ][:12]

    def right(shift: int) -> float:
        hits = 0
        for i, question in enumerate(questions):
            name = str(questions[(i + shift) % len(questions)].image)
            content = [
                {
                    "type": "image_url",
                    "image_url": {"url": _data_url(world / "data" / "images" / name)},
                },
                {"type": "text", "text": question.text},
            ]
            said = read.create_chat_completion(
                [{"role": "user", "content": content}],
                temperature=0.0,
                repeat_penalty=1.0,
                max_tokens=16,
            )
            hits += said["choices"][0]["message"]["content"].strip() in question.answers
        return hits / len(questions)

    assert right(0) >= 0.75
    assert right(5) <= 0.5


def _data_url(path: Path) -> str:
    data = io.BytesIO()
    Image.open(path).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _encoded(mmproj: Path, text_model: Path, picture: Image.Image) -> np.ndarray:
    """What llama.cpp makes of a picture, `(P, H)`."""
    import ctypes

    from llama_cpp import mtmd_cpp

    how = mtmd_cpp.mtmd_context_params_default()
    how.n_threads = 1
    read = loaded(text_model)
    context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), read.model, how)
    assert context is not None
    pixels = np.ascontiguousarray(picture)
    bitmap = mtmd_cpp.mtmd_bitmap_init(
        picture.width, picture.height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    )
    chunks, text = mtmd_cpp.mtmd_input_chunks_init(), mtmd_cpp.mtmd_input_text()
    text.text = mtmd_cpp.mtmd_default_marker()
    text.text_len = len(text.text)
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, 0)
    assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
    shape = (mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), read.n_embd())
    found = np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(context), shape).copy()
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    mtmd_cpp.mtmd_bitmap_free(bitmap)
    mtmd_cpp.mtmd_free(context)
    return found


@torch.inference_mode()
def _class_last(built: Phi3WithProjector, picture: Image.Image, layer: int) -> np.ndarray:
    """What becomes of a picture if CLIP's class row stands behind the patches and is taken for the
    last of them, the first one lost.
    """
    tower, rows = built.model.model.vision_tower, built.model.model.vision_tower.embeddings
    pixels = built.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    patches = rows.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = (
        torch.cat([patches, rows.class_embedding.view(1, 1, -1)], 1)
        + rows.position_embedding.weight
    )
    hidden = tower.pre_layrnorm(hidden)
    for one in tower.encoder.layers[: len(tower.encoder.layers) + 1 + layer]:
        hidden = one(hidden, None)
    found: np.ndarray = built.projector(hidden[:, 1:])[0].numpy()
    return found


@pytest.mark.parametrize(
    ("encoder", "layer", "side"),
    [
        *[("clip", -2, 32), ("clip", -1, 32), ("siglip", -2, 32), ("siglip", -1, 32)],
        *[("clip", -2, 48), ("siglip", -2, 48)],  # positions resized to another size
    ],
)
def test_llama_cpp_sees_what_torch_sees(
    encoder: str, layer: int, side: int, asked: Any, tmp_path: Path
) -> None:
    """A picture that fits needs no resizing, so the vectors themselves agree: as far as float16
    goes, and GELU's approximation.

    llama.cpp's own defect (its issue 25814) is told apart from ours: it puts CLIP's class row last.
    A version that is mended passes too.
    """
    make_language(tmp_path / "language")
    make_vision(tmp_path / "vision", encoder=encoder)
    parts = str(tmp_path / "language"), str(tmp_path / "vision")
    built = Phi3WithProjector.assemble(
        *parts, encoder=encoder, layer=layer, size=side, device="cpu", dtype=torch.float32
    )
    with artifacts.staged_artifact(tmp_path / "model", kind="model folder") as aside:
        save_model(built, aside)
    assert export(tmp_path / "model", tmp_path / "out", "f16", asked, ignore).mmproj
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8))
    with torch.inference_mode():
        right = built.project([picture])[0].numpy()
        other = built.project([Image.new("RGB", (side, side), "red")])[0].numpy()
    seen = _encoded(tmp_path / "out" / "mmproj-f16.gguf", tmp_path / "out", picture)
    assert seen.shape == right.shape
    expected = [right] if encoder == "siglip" else [right, _class_last(built, picture, layer)]
    assert min(np.abs(seen - one).max() for one in expected) <= 0.01 * np.abs(right).max()
    assert np.abs(other - right).max() > 0.1 * np.abs(right).max()


def test_ollama_gets_a_modelfile(exported: Path) -> None:
    lines = (exported / "Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./model-f16.gguf", "FROM ./mmproj-f16.gguf"]
    assert [line for line in lines if line.startswith("PARAMETER stop")] == [
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop "<|assistant|>"',
        'PARAMETER stop "<|endoftext|>"',
    ]
    for name in ("model-f16.gguf", "mmproj-f16.gguf"):
        assert (exported / name).is_file()


def test_a_pooled_model_has_no_mmproj_and_our_engine_reads_it(asked: Any, tmp_path: Path) -> None:
    pooled = make_model(tmp_path / "pooled", projector=Projector(pool=2))
    report = export(pooled, tmp_path / "out", "f16", asked, ignore)
    assert report.mmproj is False
    assert "joins 2 x 2 patches" in report.mmproj_why_not
    assert not (tmp_path / "out" / "mmproj-f16.gguf").exists()
    assert "mmproj" not in (tmp_path / "out" / "Modelfile").read_text()
    engine = LlamaEngine.open(tmp_path / "out")
    assert engine.picture_tokens == 4
    whole = load_model(pooled, "cpu")
    with torch.inference_mode():
        assert np.array_equal(
            engine.encode_image(asked.compared[1][0]).embeddings,
            whole.project([asked.compared[1][0]])[0].numpy(),
        )
    session = ChatSession(engine, Sampling(max_new_tokens=4))
    session.set_image(asked.compared[1][0])
    assert list(session.ask("What is it?"))


@pytest.mark.parametrize(
    ("kind", "says"), [("linear", "has a GELU between its layers, this one has linear")]
)
def test_what_llama_cpp_has_no_graph_for_is_said(kind: Any, says: str, tmp_path: Path) -> None:
    config = load_model(make_model(tmp_path, projector=Projector(kind=kind)), "cpu").model.config
    assert says in str(gguf_projector.why_no_projector(config))
    config.projector_hidden_act = "gelu"
    assert gguf_projector.why_no_projector(config) is None
    config.vision_config.model_type = "dinov2"
    assert "this one is dinov2" in str(gguf_projector.why_no_projector(config))


def test_asked_wrongly(model: Path, tiny: Path, tmp_path: Path, verb: Any) -> None:
    with pytest.raises(
        UsageError, match="got q3; wanted q4_k_m or q5_k_m or q6_k or q8_0 or f16 or auto"
    ):
        verb("export", model, "--quant", "q3", "--out", tmp_path / "x")
    with pytest.raises(UsageError, match="got onnx; wanted gguf"):
        verb("export", model, "--to", "onnx")
    with pytest.raises(UsageError, match="both their rows and their pictures"):
        verb("export", model, "--data", tmp_path)
    with pytest.raises(ArtifactError, match="is not a model folder"):
        verb("export", tmp_path / "nowhere")
    with pytest.raises(
        UsageError,
        match="would be overwritten; got a model folder; wanted nothing there, or a gguf folder",
    ):
        verb("export", model, "--out", tiny)
    assert not list(tmp_path.iterdir())


def test_without_llama_cpp_it_is_said_how_to_get_it(
    tiny: Path, exported: Path, asked: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for attempt in (
        lambda: export(tiny, tmp_path / "out", "f16", asked, ignore),
        lambda: LlamaEngine.open(exported),
    ):
        with pytest.raises(
            PartError, match=r"llama.cpp is not installed.*pip install 'phisense\[cpu\]'"
        ):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_cannot_be_told_is_refused(tiny: Path) -> None:
    tokenizer = load_model(tiny, "cpu").prompt.tokenizer
    assert read_vocabulary(tokenizer, 768).model == "gpt2"
    with pytest.raises(
        PartError, match="more tokens than the model rows; got id 615; wanted below 600"
    ):
        read_vocabulary(tokenizer, 600)

    class Unigram:
        backend_tokenizer = type(
            "", (), {"to_str": lambda self: json.dumps({"model": {"type": "Unigram"}})}
        )()

    with pytest.raises(PartError, match="got Unigram"):
        read_vocabulary(Unigram(), 768)


def test_a_model_stored_in_bfloat16_is_compared_in_float32(
    tiny: Path, asked: Any, tmp_path: Path
) -> None:
    """The control: computed in bfloat16, the reference itself is further off than the file."""
    half = tmp_path / "half"
    built = load_model(tiny, "cpu")
    built.model.to(torch.bfloat16)
    with artifacts.staged_artifact(half, kind="model folder") as aside:
        save_model(built, aside)
    report = export(half, tmp_path / "out", "f16", asked, ignore)
    assert report.f16.kl <= 1e-4
    reference, narrow = gguf_agreement.TorchReference(half), load_model(half, "cpu", torch.bfloat16)
    assert (
        reference.built.model.model.language_model.layers[0].mlp.down_proj.weight.dtype
        == torch.bfloat16
    )
    read = reference.encode(*asked.compared)
    for one in read:
        one.answer = [5, 6]
    wide = [reference.logits(one) for one in read]
    reference.built = narrow
    assert (
        gguf_agreement.measure_agreement(wide, [reference.logits(one) for one in read], read).kl
        > 10 * report.f16.kl
    )


def test_damaged_weights_are_sentences(tiny: Path, asked: Any, tmp_path: Path) -> None:
    for change, says in (
        ("missing", "incomplete; got 1 .*norm.weight"),
        ("large", "does not fit float16"),
        ("cut", "cannot be opened"),
    ):
        broken = tmp_path / change
        shutil.copytree(tiny, broken)
        path = broken / "model.safetensors"
        tensors = load_file(path)
        name = next(
            n
            for n in tensors
            if n.endswith("model.norm.weight" if change == "missing" else "down_proj.weight")
        )
        if change == "missing":
            del tensors[name]
        else:
            tensors[name][0, 0] = 1e6
        save_file(tensors, path, metadata={"format": "pt"})
        if change == "cut":
            path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ArtifactError, match="is damaged"):
            export(broken, tmp_path / "out", "f16", asked, ignore)
        sign(broken)
        with pytest.raises((ArtifactError, PartError), match=says):
            export(broken, tmp_path / "out", "f16", asked, ignore)
        assert not (tmp_path / "out").exists()


def test_agreement_knows_what_is_alike() -> None:
    rng = np.random.default_rng(0)
    right = [rng.normal(size=(6, 9)).astype(np.float32) for _ in range(4)]
    read = [
        gguf_agreement.EncodedQuestion(
            [], np.zeros((0, 2), np.float32), [1, 2, 3], one[2:].argmax(1).tolist()
        )
        for one in right
    ]
    same = gguf_agreement.measure_agreement(right, right, read)
    assert same == FileAgreement(positions=24, top1=1.0, kl=0.0, same_answers=1.0)
    other = [one.copy() for one in right]
    other[0][5] = -other[0][5]  # within the first answer
    other[1][0] = -other[1][0]  # before the second's
    changed = gguf_agreement.measure_agreement(right, other, read)
    assert changed.top1 == pytest.approx(22 / 24)
    assert changed.same_answers == 0.75
    logs = [
        np.log(np.exp(x) / np.exp(x).sum())
        for x in (right[0][5].astype(float), other[0][5].astype(float))
    ]
    by_hand = (np.exp(logs[0]) * (logs[0] - logs[1])).sum()
    logs = [
        np.log(np.exp(x) / np.exp(x).sum())
        for x in (right[1][0].astype(float), other[1][0].astype(float))
    ]
    by_hand += (np.exp(logs[0]) * (logs[0] - logs[1])).sum()
    assert changed.kl == pytest.approx(by_hand / 24)
