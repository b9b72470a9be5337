"""Talking at Phi-3.5-mini's shape on one GPU: our torch engine beside plain `generate`, and beside
what the memory could deliver.

Needs a CUDA GPU of 12 GB, 10 GB of disk. Random weights in bfloat16 and in NF4, one picture of 576
slots, a question of twenty tokens, a follow-up. Decoding reads every weight of the language part
and of its head, and the keys and values so far, once a token: that over the bandwidth of a large
copy here is the bound. `--tiny` runs all of it at a tiny shape on a CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_training import CLIP_L, CLIP_TINY, LAYERS, REAL, TINY
from parts import make_parts
from PIL import Image

from phisense.chat import ChatSession, Sampling
from phisense.chat.torch_engine import TorchEngine
from phisense.conversations import IMAGE, Message
from phisense.model import Phi3WithProjector

QUESTION = (
    "What is the large red thing in the top left of this picture, and what stands right beside it"
    " there?"
)
FOLLOW_UP = "And which of the two is the larger one?"


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bandwidth() -> float:
    """Bytes a second, read and written, of a large copy."""
    a, b = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronise()
        started = time.perf_counter()
        b.copy_(a)
        synchronise()
        best = max(best, 2 * a.nbytes / (time.perf_counter() - started))
    return best


def bytes_a_token(built: Phi3WithProjector, length: int) -> int:
    text = built.model.config.text_config
    layers = sum(p.nbytes for p in built.model.model.language_model.layers.parameters())
    kv = (
        2
        * text.num_hidden_layers
        * length
        * text.num_key_value_heads
        * (text.hidden_size // text.num_attention_heads)
    )
    return int(
        layers + built.model.lm_head.weight.nbytes + kv * built.model.lm_head.weight.element_size()
    )


def ours(engine: TorchEngine, session: ChatSession, question: str, tokens: int) -> dict[str, float]:
    """First piece after, and tokens a second from there on."""
    stop = threading.Event()
    synchronise()
    started = time.perf_counter()
    session.sampling = Sampling(tokens)
    before = engine.count_tokens(*session._prompt(question))
    steps: list[float] = []
    step = engine._decoding.step

    def timed(tokens: Mapping[int, int]) -> torch.Tensor:
        steps.append(time.perf_counter())
        return step(tokens)

    engine._decoding.step = timed  # type: ignore[method-assign]
    try:
        for _ in session.ask(question, stop):
            pass
    finally:
        del engine._decoding.step  # type: ignore[method-assign]
    synchronise()
    return {
        "first": steps[0] - started,
        "rate": (len(steps) - 1) / (steps[-1] - steps[0]),
        "length": before + len(steps) / 2,
    }


def plain(
    built: Phi3WithProjector, slots: torch.Tensor, question: str, tokens: int
) -> dict[str, float]:
    ids = built.prompt.render_for_completion(
        [Message("user", f"{IMAGE}\n{question}")], [len(slots)]
    )
    seconds, made = [], 0
    for count in (1, tokens):
        synchronise()
        started = time.perf_counter()
        with torch.inference_mode():
            vectors = built.embed(torch.tensor([ids], device=built.device), [slots])
            out = built.model.generate(inputs_embeds=vectors, max_new_tokens=count, do_sample=False)
        synchronise()
        seconds.append(time.perf_counter() - started)
        made = out.shape[1]
    return {"first": seconds[0], "rate": (made - 1) / (seconds[1] - seconds[0])}


def recorded_is_computed(engine: TorchEngine) -> float:
    """The largest difference of logits between recorded steps and the same steps computed one by
    one.
    """
    decoding = engine._decoding
    decoding.lengths[0] = 0
    worst: list[float] = []
    logits = decoding.prefill(decoding.embed([1, 2, 3, 4, 5] * 20, []))[0]
    for _ in range(24):
        token, length = int(logits.argmax()), decoding.lengths[0]
        logits = decoding.prefill(decoding.embed([token], []))[0].clone()
        decoding.lengths[0] = length
        worst.append(float((decoding.step({0: token})[0] - logits).abs().max()))
    decoding.lengths[0] = 0
    return float(torch.tensor(worst).max())  # not max(): it passes over NaN


def measure(
    root: Path, quantize: bool, tiny: bool, rounds: int, most: float | None
) -> dict[str, Any]:
    built = Phi3WithProjector.assemble(
        str(root / "language"), str(root / "vision"), quantize=quantize
    )
    engine = TorchEngine(built, "bench")
    picture = Image.effect_noise((336, 336), 80).convert("RGB")
    slots = engine.encode_image(picture)
    tokens = 24 if tiny else 200
    found: dict[str, list[dict[str, float]]] = {"ours": [], "follow_up": [], "plain": []}
    for _ in range(rounds + 1):  # the first warms up
        session = ChatSession(engine)
        session.set_image(picture)
        found["ours"].append(ours(engine, session, QUESTION, tokens))
        found["follow_up"].append(ours(engine, session, FOLLOW_UP, tokens))
        found["plain"].append(plain(built, slots, QUESTION, tokens))

    def median(side: str, key: str) -> float:
        return statistics.median(one[key] for one in found[side][1:])

    rate, length = median("ours", "rate"), median("ours", "length")
    ratios = [
        a["rate"] / b["rate"] for a, b in zip(found["ours"][1:], found["plain"][1:], strict=True)
    ]
    return {
        "tokens_per_s": round(rate, 1),
        "plain_tokens_per_s": round(median("plain", "rate"), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "bandwidth_share": most and round(rate * bytes_a_token(built, round(length)) / most, 3),
        "first_token_s": round(median("ours", "first"), 4),
        "plain_first_token_s": round(median("plain", "first"), 4),
        "follow_up_first_token_s": round(median("follow_up", "first"), 4),
        "recorded_minus_computed": recorded_is_computed(engine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on whatever is here")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument(
        "--root", type=Path, help="keep what is made here, as bench/gpu_training.py does"
    )
    asked = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not asked.tiny and not cuda:
        raise SystemExit("there is no CUDA GPU here; --tiny shows on a CPU that the benchmark runs")
    with tempfile.TemporaryDirectory() as spare:
        root = (asked.root or Path(spare)).resolve()
        if not (root / "language").is_dir():
            tiny = asked.tiny
            make_parts(
                root,
                LAYERS[tiny],
                TINY if tiny else REAL,
                CLIP_TINY if tiny else CLIP_L,
                window=4096,
                cuda=cuda,
            )
        most = None if asked.tiny or not cuda else bandwidth()
        result = {
            name: measure(root, name == "nf4", asked.tiny, asked.rounds, most)
            for name in ("bfloat16", "nf4")
        }
    if cuda:
        print(torch.cuda.get_device_name(), "" if most is None else f"{most / 1e12:.2f} TB/s")
    for name, figures in result.items():
        for key, value in figures.items():
            print(f"{name}: {key}: {value}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
