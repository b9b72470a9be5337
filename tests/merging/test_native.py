"""The merged folder belongs to everybody: plain transformers opens it where phisense cannot be
imported, and answers the same.
"""

from __future__ import annotations

from pathlib import Path

from .consumers import alone

PLAIN = """
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, questions = given["model"], given["questions"]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
answers = []
for picture, text in questions:
    content = [{"type": "image"}] if picture else []
    content.append({"type": "text", "text": text})
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = {"images": Image.open(picture)} if picture else {}
    inputs = processor(text=prompt, add_special_tokens=False, return_tensors="pt", **images)
    made = model.generate(**inputs, max_new_tokens=128)
    made = made[0, inputs["input_ids"].shape[1]:]
    answers.append(processor.decode(made, skip_special_tokens=True).strip())
print(json.dumps([type(model).__name__, answers]))
"""


def test_plain_transformers_opens_it_and_answers_the_same(
    model: Path, world: Path, tmp_path: Path
) -> None:
    from phisense.chat import ChatSession
    from phisense.chat.torch_engine import TorchEngine
    from phisense.conversations import read_questions
    from phisense.vision.image_io import open_image

    images = world / "data" / "images"
    asked = [
        (str(images / str(q.image)), q.text)
        for q in read_questions(world / "data" / "heldout.jsonl")[:12]
    ]
    questions = [*asked, (asked[0][0], "Describe the picture."), ("", "Hello.")]
    session = ChatSession(TorchEngine.open(model, "cpu"))
    ours = []
    for picture, text in questions:
        session.set_image(open_image(Path(picture)) if picture else None)
        ours.append("".join(session.ask(text)).strip())
    kind, theirs = alone(PLAIN, tmp_path, model=model, questions=questions)
    assert kind == "LlavaForConditionalGeneration"
    assert theirs == ours
    assert len(set(theirs)) > 4, "answers that never differ would agree by accident"


def test_the_folder_holds_no_path_of_this_machine(model: Path) -> None:
    for path in model.glob("*.json"):
        if path.name != "manifest.json":  # phisense's own facts: where the speech part is
            assert "/src/" not in path.read_text(), path.name
