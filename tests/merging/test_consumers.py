"""Others' tools on our folders, each in a process without phisense: TRL, PEFT, `transformers
serve`, llama-cpp-python.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .consumers import alone

TRL = """
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

torch.manual_seed(0)
processor = AutoProcessor.from_pretrained(given["model"])
model = AutoModelForImageTextToText.from_pretrained(given["model"], dtype=torch.float32)
lora = LoraConfig(
    r=8, lora_alpha=16, task_type="CAUSAL_LM", modules_to_save=["multi_modal_projector"],
    target_modules=r".*language_model.*\\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
)
seen = [[picture] for picture in given["pictures"]]
rows = {
    "images": seen,
    "prompt": [[{"role": "user", "content": one}] for one in given["questions"]],
    "completion": [[{"role": "assistant", "content": one}] for one in given["answers"]],
}
data = Dataset.from_dict(rows).cast_column("images", List(Image()))
shifted = {**rows, "images": seen[1:] + seen[:1]}
other = Dataset.from_dict(shifted).cast_column("images", List(Image()))
args = SFTConfig(
    output_dir=given["out"], max_steps=12, per_device_train_batch_size=4, learning_rate=2e-3,
    logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
    gradient_checkpointing=False, max_length=None, warmup_steps=0, lr_scheduler_type="constant",
)
trainer = SFTTrainer(
    model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=processor,
    peft_config=lora,
)
parameters = trainer.model.named_parameters
before = {name: p.detach().clone() for name, p in parameters() if p.requires_grad}
first = trainer.evaluate()["eval_loss"]
trainer.train()
now = {name: p.detach() for name, p in parameters() if name in before}
moved = {
    kind: max(float((now[name] - before[name]).abs().max()) for name in now if kind in name)
    for kind in ("lora_B", "multi_modal_projector")
}
losses = [trainer.evaluate(one)["eval_loss"] for one in (data, data, other)]
last, again, shuffled = losses
told = {"first": first, "last": last, "again": again, "shuffled": shuffled, "moved": moved}
print(json.dumps(told))
"""


def test_trl_goes_on_training_it(model: Path, world: Path, tmp_path: Path) -> None:
    """The loss falls, adapter and projector move, and with another's pictures it is another
    loss.
    """
    pytest.importorskip("trl", reason="TRL is not installed")
    rows = [
        json.loads(line)
        for line in (world / "data" / "heldout.jsonl").read_text().splitlines()[:40:5]
    ]
    found = alone(
        TRL,
        tmp_path,
        model=model,
        out=tmp_path / "run",
        pictures=[str(world / "data" / "images" / row["image"]) for row in rows],
        questions=[row["text"] for row in rows],
        answers=[f"I would say {row['answer'].lower()}" for row in rows],
    )
    print(found)
    assert found["last"] < 0.7 * found["first"]
    assert min(found["moved"].values()) > 1e-4
    assert found["again"] == found["last"]
    assert found["shuffled"] > found["last"] + 0.01


PEFT = """
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers import CLIPVisionModel, Phi3ForCausalLM

processor = AutoProcessor.from_pretrained(given["model"])
merged = AutoModelForImageTextToText.from_pretrained(given["model"], dtype=torch.float32)
base = AutoModelForImageTextToText.from_pretrained(given["model"], dtype=torch.float32)
phi = Phi3ForCausalLM.from_pretrained(given["language"], dtype=torch.float32)
base.model.language_model.load_state_dict(phi.model.state_dict())
base.lm_head.load_state_dict(phi.lm_head.state_dict())
tower = CLIPVisionModel.from_pretrained(given["vision"], dtype=torch.float32)
base.model.vision_tower.load_state_dict(tower.state_dict())
for weight in base.model.multi_modal_projector.parameters():
    weight.data.zero_()
content = [{"type": "image"}, {"type": "text", "text": given["question"]}]
text = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True
)
picture = Image.open(given["picture"])
inputs = processor(text=text, images=picture, add_special_tokens=False, return_tensors="pt")
with torch.inference_mode():
    wanted = merged(**inputs).logits
    untrained = base(**inputs).logits
    adapted = PeftModel.from_pretrained(base, given["adapter"]).eval()
    found = adapted(**inputs).logits
spread = float(wanted.std())
print(json.dumps({
    "off": float((found - wanted).abs().max()) / spread,
    "untrained": float((untrained - wanted).abs().max()) / spread,
}))
"""


def test_peft_loads_the_adapter_alone(
    trained: dict[str, Any], merged: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    """Onto the parts in plain transformers. The merge stands on the base as NF4 shows it, so the
    logits are near, not the same.
    """
    import yaml

    run = Path(trained["run"])
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    found = alone(
        PEFT,
        tmp_path,
        model=Path(merged["model"]),
        adapter=run / "adapter",
        language=recipe["language"]["part"],
        vision=recipe["vision"]["part"],
        picture=world / "data" / "images" / "heldout-00001.jpg",
        question="Describe the picture.",
    )
    print(found)
    assert found["off"] < found["untrained"] / 5


CLIENT = """
import base64
from pathlib import Path
from openai import OpenAI

client = OpenAI(base_url=given["url"] + "/v1", api_key="none", max_retries=0, timeout=120)
said = []
for picture in given["pictures"]:
    url = "data:image/jpeg;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": given["question"]},
    ]
    stream = client.chat.completions.create(
        model=given["model"], messages=[{"role": "user", "content": content}], max_tokens=64,
        temperature=0.0, stream=True,
    )
    pieces = [piece.choices[0].delta.content for piece in stream if piece.choices]
    said.append([piece for piece in pieces if piece])
print(json.dumps(said))
"""


@pytest.mark.slow
def test_transformers_serve_answers_openais_client(
    model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    """Its own command line, its own process, a client that knows nothing of us: streamed, and what
    we say ourselves.
    """
    for needed in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(needed, reason=f"transformers serve needs {needed}")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    words = [
        str(command),
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    pictures = [str(world / "data" / "images" / f"heldout-0000{number}.jpg") for number in (1, 3)]
    with (
        (tmp_path / "said.txt").open("w") as log,
        subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path) as server,
    ):
        try:
            wait_for(port, server, tmp_path / "said.txt")
            said = alone(
                CLIENT,
                tmp_path,
                url=f"http://127.0.0.1:{port}",
                model=model,
                pictures=pictures,
                question="Describe the picture.",
            )
        finally:
            server.terminate()
            server.wait(20)
    assert min(len(pieces) for pieces in said) > 3, "streamed"
    ours = [
        verb("ask", model, "--image", picture, "-q", "Describe the picture.")["answer"]
        for picture in pictures
    ]
    assert ["".join(pieces).strip() for pieces in said] == ours
    assert ours[0] != ours[1]


def wait_for(port: int, server: subprocess.Popen[bytes], said: Path, seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert server.poll() is None, said.read_text()[-2000:]
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(said.read_text()[-2000:])


LLAMA = """
import base64
from pathlib import Path
from llama_cpp import Llama
from llama_cpp.llama_chat_format import MTMDChatHandler

handler = MTMDChatHandler(given["mmproj"], verbose=False)
read = Llama(given["text"], chat_handler=handler, n_ctx=1024, verbose=False)
said = []
for picture, question in given["asked"]:
    content = [{"type": "text", "text": question}]
    if picture:
        url = "data:image/jpeg;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    made = read.create_chat_completion(
        [{"role": "user", "content": content}], temperature=0.0, repeat_penalty=1.0, max_tokens=32
    )
    said.append(made["choices"][0]["message"]["content"].strip())
print(json.dumps(said))
"""


@pytest.mark.slow
def test_llama_cpp_python_answers_from_the_pair(
    exported: Path, model: Path, world: Path, tmp_path: Path
) -> None:
    """Text answers are torch's. With a picture llama.cpp puts CLIP's class row in another place
    (docs/llama.md), so it is less right than torch on the same weights: how much less is printed,
    and it must be far better than without looking (0.35).
    """
    rows = [
        json.loads(line)
        for line in (world / "data" / "heldout.jsonl").read_text().splitlines()[:120:3]
    ]
    asked = [[str(world / "data" / "images" / row["image"]), row["text"]] for row in rows]
    texts = ["Hello.", "Who are you?", "What can you see?"]
    text, mmproj = next(exported.glob("model-*.gguf")), next(exported.glob("mmproj-*.gguf"))
    said = alone(
        LLAMA, tmp_path, text=text, mmproj=mmproj, asked=[*asked, *(["", one] for one in texts)]
    )

    from phisense.chat import ChatSession, Sampling
    from phisense.chat.torch_engine import TorchEngine
    from phisense.vision.image_io import open_image

    session = ChatSession(TorchEngine.open(model, "cpu"), Sampling(32))

    def ours(picture: str, question: str) -> str:
        session.set_image(open_image(Path(picture)) if picture else None)
        return "".join(session.ask(question)).strip()

    assert said[len(asked) :] == [ours("", one) for one in texts]
    torch_says = [ours(*one) for one in asked]
    same = sum(a == b for a, b in zip(said, torch_says, strict=False)) / len(asked)
    right = [
        sum(a == row["answer"] for a, row in zip(answers, rows, strict=False)) / len(rows)
        for answers in (said, torch_says)
    ]
    print(f"same answers as torch {same:.1%}, right {right[0]:.1%}, torch right {right[1]:.1%}")
    assert all(said)
    assert min(same, right[0]) >= 0.6
