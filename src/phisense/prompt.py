"""The only place that knows Phi-3's chat template: messages -> token ids, labels, and the slots where pictures go.

    <|user|> \\n <image>...<image> \\n What is this? <|end|> \\n <|assistant|> \\n A cat. <|end|> \\n <|endoftext|>
     -100    -100 per picture token      -100                    -100          supervised        -100

A conversation is tokenised piece by piece, one piece a message, and each piece carries its own labels. Nothing is ever
found again by searching in text or by tokenising twice. Phi-3's tags swallow the white space to their right, so the line
breaks of the template are not tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .conversations import IMAGE, Conversation, Message
from .errors import ConversationError, PartError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
_TAGS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
END_OF_TEXT = "<|endoftext|>"

#: In the order of Phi-3's vocabulary, for tokenizers built from scratch; the last ones are free for later use.
CONTROL_TOKENS = (
    *(END_OF_TEXT, _TAGS["assistant"], "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>"),
    *(_TAGS["system"], END, "<|placeholder5|>", "<|placeholder6|>", _TAGS["user"]),
)

#: For model folders, so that `apply_chat_template` of plain transformers renders what this module renders. A part of type
#: "image" is written at the head of its message, followed by a line break, as in the training data.
REMEMBERED = 4096  # messages
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    + "".join(
        f"{{%- {'if' if role == 'system' else 'elif'} message['role'] == '{role}' -%}}{{{{- '{tag}\\n' -}}}}" for role, tag in _TAGS.items()
    )
    + "{%- else -%}{{- raise_exception('roles are system, user and assistant; got ' ~ message['role']) -}}{%- endif -%}"
    + "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    + f"{{%- for part in message['content'] if part['type'] == 'image' -%}}{{{{- '{IMAGE}\\n' -}}}}{{%- endfor -%}}"
    + "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    + "{%- endif -%}"
    + f"{{{{- '{END}\\n' -}}}}{{%- endfor -%}}"
    + f"{{%- if add_generation_prompt -%}}{{{{- '{_TAGS['assistant']}\\n' -}}}}{{%- else -%}}{{{{- '{END_OF_TEXT}' -}}}}{{%- endif -%}}"
)


#: The same for llama.cpp, whose tokenizer does not drop the line breaks behind tags: here there are none. A picture is a marker in the
#: text (`<__media__>`), with a line break behind it. `LEAD` is what the tokenizer itself puts before a word that follows a tag.
LEAD = "LEAD"
LLAMA_CPP_TEMPLATE = (
    "{%- for message in messages -%}"
    + "{%- if message['content'] is string -%}{%- set said = message['content'] -%}"
    + "{%- else -%}{%- set said = message['content'] | map(attribute='text') | join('\\n') -%}{%- endif -%}"
    + "{{- '<|' ~ message['role'] ~ '|>' -}}{%- if not said.startswith('<__') -%}{{- '"
    + LEAD
    + "' -}}{%- endif -%}"
    + f"{{{{- said | trim ~ '{END}' -}}}}"
    + "{%- endfor -%}"
    + f"{{%- if add_generation_prompt -%}}{{{{- '{_TAGS['assistant']}' -}}}}{{%- endif -%}}"
)
#: And for Ollama, in Go's template language.
OLLAMA_TEMPLATE = f"{{{{- range .Messages }}}}<|{{{{ .Role }}}}|>{LEAD}{{{{ .Content }}}}{END}{{{{- end }}}}{_TAGS['assistant']}"


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ids` and `labels` are of one length T; label -100 where a token is not supervised."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class Prompt:
    """Renders messages with one tokenizer. `slots[i]` is how many positions the i-th picture takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image_id = _id(tokenizer, IMAGE)
        self.end_id = _id(tokenizer, END)
        self.end_of_text_id = _id(tokenizer, END_OF_TEXT)
        self._tag_ids = {role: _id(tokenizer, tag) for role, tag in _TAGS.items()}
        self._known: dict[Message, list[int]] = {}  # a chat's turns are tokenised again with each question, and short answers recur
        self._controls = [token.content for token in tokenizer.added_tokens_decoder.values()]

    @property
    def stop_ids(self) -> list[int]:
        """Generation stops on any of these: `<|end|>`, `<|assistant|>`, `<|endoftext|>`."""
        return [self.end_id, self._tag_ids["assistant"], self.end_of_text_id]

    def render(self, messages: Sequence[Message], slots: Sequence[int], *, sample: str = "conversation") -> Rendered:
        """For training: every assistant message and its `<|end|>` is supervised.

        Raises ConversationError, naming `sample`, if the slots do not match the pictures or nothing would be supervised.
        """
        ids: list[int] = []
        labels: list[int] = []
        for message in messages:
            piece = self._piece(message)
            ids += piece
            labels += [IGNORED, *piece[1:]] if message.role == "assistant" else [IGNORED] * len(piece)
        ids.append(self.end_of_text_id)
        labels.append(IGNORED)
        rendered = self._with_slots(ids, labels, slots, sample)
        if rendered.supervised == 0:
            raise ConversationError(
                f"{sample} has no supervised token",
                got="no answer of the assistant",
                wanted="at least one",
                do="Give it an answer or drop it",
            )
        return rendered

    def fit(self, conversation: Conversation, slots: int, length: int) -> tuple[Rendered, int]:
        """As `render`, in at most `length` tokens: exchanges too many leave whole, from the end; also how many did.

        Raises ConversationError if not even the first exchange fits. A picture, of `slots` positions, is never cut through.
        """
        messages = list(conversation.messages)
        called = f"conversation {conversation.id}"
        left_out = 0
        rendered = self.render(messages, [slots] * len(conversation.images), sample=called)
        while len(rendered.ids) > length:
            last_question = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
            fewer = messages[:last_question]
            if not any(m.role == "assistant" for m in fewer) or any(IMAGE in m.text for m in messages[last_question:]):
                raise ConversationError(
                    f"{called} is too long",
                    got=f"{len(rendered.ids)} tokens in its first exchange",
                    wanted=f"at most {length}",
                    do="Raise train.<stage>.length or shorten it",
                )
            messages = fewer
            left_out += 1
            rendered = self.render(messages, [slots] * len(conversation.images), sample=called)
        return rendered, left_out

    def ask(self, messages: Sequence[Message], slots: Sequence[int]) -> list[int]:
        """For generation: the ids up to where the assistant's next message begins. Control tokens in user text are defused."""
        safe = [Message(m.role, self.defuse(m.text, keep_slots=True)) for m in messages]
        ids = [token for message in safe for token in self._piece(message)]
        ids.append(self._tag_ids["assistant"])
        return self._with_slots(ids, [IGNORED] * len(ids), slots, "the conversation").ids

    def defuse(self, text: str, *, keep_slots: bool = False) -> str:
        """`text` with every control token broken by a space, so that nobody can forge a turn or a picture by typing one."""
        return break_tokens(text, [token for token in self._controls if not (keep_slots and token == IMAGE)])

    def until_stop(self, ids: Sequence[int]) -> list[int]:
        """`ids` up to the first stop token."""
        stop = set(self.stop_ids)
        return list(itertools.takewhile(lambda token: token not in stop, ids))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _piece(self, message: Message) -> list[int]:
        known = self._known.get(message)
        if known is None:
            known = self.tokenizer(f"{_TAGS[message.role]}\n{message.text.strip()}{END}", add_special_tokens=False)["input_ids"]
            assert [known[0], known[-1]] == [self._tag_ids[message.role], self.end_id], "a tag was not tokenised as one token"
            if len(self._known) < REMEMBERED:
                self._known[message] = known
        return known

    def _with_slots(self, ids: list[int], labels: list[int], slots: Sequence[int], sample: str) -> Rendered:
        found = ids.count(self.image_id)
        if found != len(slots):
            raise ConversationError(
                f"{sample} does not have one {IMAGE} for each of its pictures",
                got=f"{found} {IMAGE} and {len(slots)} pictures",
                wanted="as many of one as of the other",
                do=f"Write {IMAGE} into a question once for each picture",
            )
        if not slots:
            return Rendered(ids, labels)
        wide_ids: list[int] = []
        wide_labels: list[int] = []
        pictures = iter(slots)
        for token, label in zip(ids, labels, strict=True):
            times = next(pictures) if token == self.image_id else 1
            wide_ids += [token] * times
            wide_labels += [label] * times
        return Rendered(wide_ids, wide_labels)


def break_tokens(text: str, tokens: Iterable[str]) -> str:
    """`text` with a space behind the first character of each of `tokens` in it."""
    for token in tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def missing_tags(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Those of Phi-3's chat tags that the tokenizer does not know."""
    known = tokenizer.get_vocab()
    return [tag for tag in (*_TAGS.values(), END, END_OF_TEXT) if tag not in known]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast, rows: int) -> int:
    """Puts `<image>` into the first free of the vocabulary's `rows`, sets the stop token and the chat template; returns its id.

    Phi-3.5 has 32,064 rows for 32,011 tokens, so `<image>` becomes 32011 and no matrix has to grow. Raises PartError if the
    tokenizer lacks Phi-3's tags or the vocabulary has no free row.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = missing_tags(tokenizer)
    if missing:
        raise PartError(
            "the language part's tokenizer lacks Phi-3's chat tags", got=f"no {', '.join(missing)}", do="Use a Phi-3 or Phi-3.5 model"
        )
    if IMAGE not in known:
        if len(tokenizer) >= rows:
            raise PartError(
                f"the vocabulary has no free row for {IMAGE}", got=f"{len(tokenizer)} tokens in {rows} rows", wanted="one row more"
            )
        tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.eos_token = END
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.chat_control_tokens = [IMAGE, END, END_OF_TEXT, *_TAGS.values()]
    return _id(tokenizer, IMAGE)


def _id(tokenizer: Any, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise PartError(f"the tokenizer has no token {token}", do="Load it through phisense.prompt.prepare_tokenizer")
    return int(found)
