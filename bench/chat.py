"""Talking on a CPU, at the full shape of Phi-3.5-mini: ours beside raw llama.cpp, its multimodal
handler, and memory bandwidth.

    python bench/chat.py [--tiny] [--rounds 5] [--folder DIR] [--transformers] [--json]

The weights are random, made here once (DIR is kept): 32 layers of 3072 as Q4_K_M, a CLIP-L/14-336,
projectors with 144 and 576 tokens a picture, the latter also as llama.cpp's mmproj. One 336-pixel
picture, a question of about 20 tokens, a follow-up. All kinds of measurement alternate within one
run; given are medians and, in brackets, the spread. An answer of one token times the wait for the
first one.

decode_vs_llamacpp    tokens a second of our engine / of a bare loop over llama_decode, same file,
                      same context, same threads
bandwidth_share       bytes of weights and cells that a token must read, times tokens a second, /
                      measured read bandwidth
first_token_gain      the handler's wait for the first token about a new picture / ours at 144
                      tokens a picture, encoding included in both
first_token_gain_576  the same with ours at 576
follow_up_gain        the handler's wait in the second turn / ours
speech_gain           see bench/speech.py
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionConfig, LlavaImageProcessorPil, Phi3Config

from phisense import artifacts
from phisense.chat import ChatSession, Sampling, Turn
from phisense.chat.llama_engine import EXPORT_KIND, VISION_FOLDER, LlamaEngine
from phisense.chat_tokenizer import prepare_tokenizer
from phisense.cpu_limits import physical_cores
from phisense.model.projectors.config import make_config, make_processor, native_class
from phisense.practice import __file__ as practice
from phisense.publish.export import write_vision
from phisense.publish.gguf_projector import write_projector
from phisense.publish.gguf_text import write_text_model
from phisense.publish.quantization import quantize
from phisense.publish.vocabulary import read_vocabulary
from phisense.publish.weights import WeightReader, name_in_language_part
from phisense.recipe import Projector

FULL = {
    "rows": 32064,
    "width": 3072,
    "inner": 8192,
    "layers": 32,
    "heads": 32,
    "window": 4096,
    "seen": (1024, 4096, 24, 16, 336, 14),
}
TINY = {
    "rows": 1024,
    "width": 256,
    "inner": 512,
    "layers": 2,
    "heads": 8,
    "window": 1024,
    "seen": (64, 128, 3, 2, 96, 12),
}
QUESTION = "What is in the picture, and what is to the left of the largest thing in it?"
FOLLOW_UP = "And which of the things in the picture is the smallest, the one at the top?"
ANSWER = "A thing."


class RandomWeights(WeightReader):
    """Normal, of standard deviation 0.02, as long as the frame of the model says; stretches of one
    block of random numbers.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("meta"):
            frame = native_class(config)(config)
        self.shapes = {name: list(weight.shape) for name, weight in frame.state_dict().items()}
        self.language, self.vision = {}, {}
        for name in self.shapes:
            inner = name_in_language_part(name)
            (self.vision if inner is None else self.language)[
                inner or name.removeprefix("model.")
            ] = (Path(), name)
        self.block = (
            torch.randn(32_000_000, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
        )
        self.random = np.random.default_rng(0)

    def shape(self, name: str) -> list[int]:
        return self.shapes[self._find(name)[1]]

    def read(self, name: str) -> torch.Tensor:
        shape = self.shape(name)
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        count = int(np.prod(shape))
        start = int(self.random.integers(len(self.block) // 2))
        return self.block[start:].repeat(-(-count // (len(self.block) - start)))[:count].view(shape)


def configuration(shape: dict[str, Any], tokenizer: Any, pool: int) -> Any:
    width, inner, layers, heads, side, patch = shape["seen"]
    long = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": shape["window"],
    }
    long |= {
        f"{length}_factor": [1.0] * (shape["width"] // shape["heads"] // 2)
        for length in ("short", "long")
    }
    text = Phi3Config(
        vocab_size=shape["rows"],
        hidden_size=shape["width"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=32 * shape["window"],
        original_max_position_embeddings=shape["window"],
        rope_parameters=long,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    seen = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
    )
    return make_config(
        Projector(pool=pool), text, seen, prepare_tokenizer(tokenizer, shape["rows"]), -2, "default"
    )


def make(folder: Path, shape: dict[str, Any]) -> None:
    """Two folders of our engine's kind over one text model: `144` (pool 2) and `576` (with the
    mmproj).
    """
    tokenizer = AutoTokenizer.from_pretrained(Path(practice).parent / "parts" / "language")
    side = shape["seen"][4]
    images = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )

    def tell(what: str, done: int, total: int) -> None:
        if done % 50 == 0:
            print(f"{what}: {done} of {total}", flush=True)

    for pool, name in ((2, "144"), (1, "576")):
        config = configuration(shape, tokenizer, pool)
        weights = RandomWeights(config)
        text = config.text_config
        each = 4 * text.num_hidden_layers * text.hidden_size
        with artifacts.staged_artifact(
            folder / name,
            kind=EXPORT_KIND,
            about={
                "name": name,
                "quant": "q4_k_m",
                "file": "model.gguf",
                "bytes_per_position": each,
            },
        ) as aside:
            make_processor(images, tokenizer, config, 1).save_pretrained(aside / "processor")
            write_vision(weights, config, aside / "processor", aside / VISION_FOLDER)
            write_projector(weights, config, images, aside / "mmproj-f16.gguf", tell)
            if pool == 2:
                write_text_model(
                    weights,
                    text,
                    read_vocabulary(tokenizer, text.vocab_size),
                    tokenizer,
                    aside / "f16.gguf",
                    name,
                    tell,
                )
                quantize(aside / "f16.gguf", aside / "model.gguf", "q4_k_m", physical_cores())
                (aside / "f16.gguf").unlink()
            else:
                (aside / "model.gguf").hardlink_to(folder / "144" / "model.gguf")
            shutil.rmtree(aside / "processor")


def bandwidth(size: int) -> float:
    """Bytes a second that all cores read of an array of `size` bytes."""
    values = torch.ones(size // 4)
    best = []
    for _ in range(3):
        begin = time.perf_counter()
        values.sum()
        best.append(size / (time.perf_counter() - begin))
    return statistics.median(best)


def bytes_per_token(path: Path, cells: int, each: int) -> int:
    """What a token reads at the least: every weight but the other rows of the embedding, and the
    cells before it.
    """
    from gguf import GGUFReader

    read = sum(int(t.n_bytes) for t in GGUFReader(path).tensors if t.name != "token_embd.weight")
    return read + cells * each


class Bare:
    """llama-cpp-python as it comes: a loop over `llama_decode`, and the multimodal handler, on one
    context.
    """

    def __init__(self, folder: Path, window: int) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import MTMDChatHandler

        self.llama_cpp = llama_cpp
        self.llama = llama_cpp.Llama(
            str(folder / "model.gguf"),
            n_ctx=window,
            n_threads=physical_cores(),
            n_threads_batch=physical_cores(),
            n_ubatch=512,
            flash_attn=True,
            verbose=False,
            chat_handler=MTMDChatHandler(str(folder / "mmproj-f16.gguf"), verbose=False),
        )

    def decode(self, before: int, tokens: int) -> float:
        """Tokens a second behind `before` others, greedily."""
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        self.llama.eval([5 + i % 500 for i in range(before)])
        context, rows = self.llama.ctx, self.llama.n_vocab()
        token = (self.llama_cpp.llama_token * 1)(7)
        begin = time.perf_counter()
        for _ in range(tokens):
            self.llama_cpp.llama_decode(context, self.llama_cpp.llama_batch_get_one(token, 1))
            token[0] = int(
                np.ctypeslib.as_array(self.llama_cpp.llama_get_logits(context), (rows,)).argmax()
            )
        return tokens / (time.perf_counter() - begin)

    def first_token(self, picture: str, turns: list[str]) -> float:
        """Seconds until an answer of one token is there; `turns` are questions and answers in
        turn.
        """
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
        ]
        messages[0]["content"] = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": turns[0]},
        ]
        begin = time.perf_counter()
        self.llama.create_chat_completion(
            messages, temperature=0.0, repeat_penalty=1.0, max_tokens=1
        )
        return time.perf_counter() - begin


def ours_decode(engine: LlamaEngine, before: int, tokens: int) -> float:
    """Tokens a second of the stream behind a prompt of about `before` tokens."""
    session = ChatSession(engine)
    session.set_image(Image.effect_noise((336, 336), 90).convert("RGB"))
    text = QUESTION
    while engine.count_tokens(*session._prompt(text)) < before:
        text += " more"
    made: list[float] = []
    original = engine._sampler

    class Timed:
        def sample(self, logits: Any, sampling: Sampling) -> int:
            made.append(time.perf_counter())
            return original.sample(logits, sampling)

    engine._sampler = Timed()  # type: ignore[assignment]
    try:
        list(
            engine.stream(
                *session._prompt(text),
                Sampling(tokens + 1),
                threading.Event(),
                session,
            )
        )
    finally:
        engine._sampler = original
    return (len(made) - 1) / (made[-1] - made[0])


def ours_first(engine: LlamaEngine, picture: Image.Image) -> tuple[float, float]:
    """Seconds until the first token about a new picture, and in the follow-up."""
    session = ChatSession(engine, Sampling(max_new_tokens=1))
    begin = time.perf_counter()
    session.set_image(picture)
    list(session.ask(QUESTION))
    first = time.perf_counter() - begin
    session.turns = [Turn(QUESTION, ANSWER)]
    begin = time.perf_counter()
    list(session.ask(FOLLOW_UP))
    return first, time.perf_counter() - begin


def transformers_bf16(shape: dict[str, Any], before: int) -> dict[str, float]:
    """The same shape in transformers and bfloat16, one short generation: seconds to the first
    token, and tokens a second.
    """
    from transformers import Phi3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(Path(practice).parent / "parts" / "language")
    text = configuration(shape, tokenizer, 1).text_config
    with torch.device("meta"):
        model = Phi3ForCausalLM(text).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    for weight in model.parameters():
        weight.data.fill_(0.001)
    for name, buffer in Phi3ForCausalLM(
        Phi3Config(**{**text.to_dict(), "num_hidden_layers": 0, "vocab_size": 8})
    ).named_buffers():
        model.get_submodule(name.rpartition(".")[0]).register_buffer(
            name.rpartition(".")[2], buffer, persistent=False
        )
    found = []
    with torch.inference_mode():
        for tokens in (1, 5):
            begin = time.perf_counter()
            model.generate(
                torch.full((1, before), 7),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
            found.append(time.perf_counter() - begin)
    return {"first_token": found[0], "decode": 4 / (found[1] - found[0])}


def speech(rounds: int, *, tiny: bool) -> float:
    """Seconds of sound a second, ours / transformers' pipeline: bench/speech.py."""
    import speech as hearing

    return float(hearing.speech_gain(rounds, tiny=tiny)["speech_gain"])


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--tiny", action="store_true", help="everything at a tiny shape, in seconds"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokens", type=int, default=48, help="tokens of each decode measurement")
    options.add_argument(
        "--folder",
        type=Path,
        help="where the models are or will be made; otherwise bench/made/chat",
    )
    options.add_argument(
        "--transformers", action="store_true", help="also transformers in bfloat16, once (8 GB)"
    )
    options.add_argument("--make", action="store_true", help="make the models and end")
    options.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = options.parse_args()
    shape = TINY if asked.tiny else FULL
    folder = asked.folder or Path(__file__).parent / "made" / (
        "chat-tiny" if asked.tiny else "chat"
    )
    if not all((folder / name / artifacts.MANIFEST).is_file() for name in ("144", "576")):
        make(folder, shape)
    if asked.make:
        return
    figures = measure(folder, shape, asked.rounds, asked.tokens)
    if asked.transformers:
        print("transformers bfloat16:", transformers_bf16(shape, 256))
    if asked.json:
        print(orjson.dumps(figures).decode())


def measure(
    folder: Path, shape: dict[str, Any], rounds: int, tokens: int
) -> dict[str, float | None]:
    pooled, plain = (
        LlamaEngine(folder / "144", max_sessions=1),
        LlamaEngine(folder / "576", max_sessions=1),
    )
    bare = Bare(folder / "576", shape["window"])
    side = shape["seen"][4]
    rng = np.random.default_rng(0)
    each = artifacts.read_manifest(folder / "144", kind=EXPORT_KIND, verify=False)[
        "bytes_per_position"
    ]
    context = pooled.picture_tokens + 32
    kinds = (
        "bandwidth",
        "ours",
        "bare",
        "handler first",
        "handler follow-up",
        "144 first",
        "144 follow-up",
        "576 first",
        "576 follow-up",
    )
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):  # the first one warms up
        picture = Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8))
        data = io.BytesIO()
        picture.save(data, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        one = {"bandwidth": bandwidth(64 << 20 if shape is TINY else 2500 << 20)}
        one["ours"] = ours_decode(pooled, context, tokens)
        one["bare"] = bare.decode(context, tokens)
        one["handler first"] = bare.first_token(url, [QUESTION])
        one["144 first"], one["144 follow-up"] = ours_first(pooled, picture)
        one["handler follow-up"] = bare.first_token(url, [QUESTION, ANSWER, FOLLOW_UP])
        one["576 first"], one["576 follow-up"] = ours_first(plain, picture)
        print(
            f"round {number}: " + "  ".join(f"{kind} {value:.3g}" for kind, value in one.items()),
            flush=True,
        )
        if number:
            for kind, value in one.items():
                found[kind].append(value)
    need = bytes_per_token(folder / "144" / "model.gguf", context + tokens // 2, each)
    print(
        f"{physical_cores()} threads; {need / 1e9:.2f} GB a token; {pooled.picture_tokens} and"
        f" {plain.picture_tokens} tokens a picture"
    )
    for kind, values in found.items():
        unit = " GB/s" if kind == "bandwidth" else " tokens/s" if kind in ("ours", "bare") else " s"
        print(f"{kind}: {told([v / 1e9 for v in values] if kind == 'bandwidth' else values)}{unit}")
    middle = {kind: statistics.median(values) for kind, values in found.items()}
    return {
        "decode_vs_llamacpp": middle["ours"] / middle["bare"],
        "bandwidth_share": middle["ours"] * need / middle["bandwidth"],
        "first_token_gain": middle["handler first"] / middle["144 first"],
        "first_token_gain_576": middle["handler first"] / middle["576 first"],
        "follow_up_gain": middle["handler follow-up"] / middle["144 follow-up"],
        "speech_gain": speech(min(rounds, 3), tiny=shape is TINY),
    }


if __name__ == "__main__":
    main()
