r"""Renders messages in the chat format of a language family.

What comes out is token ids, labels, and positions of image tokens. With Phi-3's format:

    <|user|> \n <image>...<image> \n What is this? <|end|> \n <|assistant|> \n A cat. <|end|>
    \n <|endoftext|>
     -100    -100 per image token        -100                    -100          supervised
             -100

A conversation is tokenized message by message, and each message carries its own labels. Labels are
never recovered by searching in text or by tokenizing twice. Phi-3's tags strip the whitespace to
their right, so the line breaks of the template are not tokens. The formats themselves are data, in
`families/`; `chat_tokenizer.py` prepares a tokenizer for one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .conversations import IMAGE, Conversation, Message
from .errors import ConversationError, PartError
from .families import family_of_config, family_of_tokenizer, token_id
from .families.base import ROLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .families import ChatFormat

IGNORE_INDEX = -100
CACHED_MESSAGES = 4096  # messages


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ids` and `labels` have the same length T; the label of an unsupervised token is -100."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class Prompt:
    """Renders messages with one tokenizer. `image_tokens[i]` is the number of tokens of the i-th
    image.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.family = family_of_tokenizer(tokenizer)
        self.image_id = _id(tokenizer, IMAGE)
        self.end_id = _id(tokenizer, self._chat.end)
        self.end_of_text_id = _id(tokenizer, self._chat.end_of_text)
        self._tag_ids = {role: self._tokenize_tag(role) for role in ROLES}
        self._answer_ids = [
            *self._tag_ids["assistant"],
            *self._tokenize(self._chat.answer_prefix),
        ]
        self._after_end = self._tokenize(self._chat.after_end)
        # each chat request tokenizes all earlier turns again, and short answers recur
        self._cache: dict[tuple[Message, bool], list[int]] = {}
        self._special_tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]

    @property
    def stop_ids(self) -> list[int]:
        """The stop tokens of generation: the end of a message, the tag of another one of the
        assistant, the end of the text. For Phi-3 `<|end|>`, `<|assistant|>`, `<|endoftext|>`.
        """
        return [self.end_id, self._tag_ids["assistant"][0], self.end_of_text_id]

    @cached_property
    def image_opening(self) -> list[int]:
        """The ids before an image that begins a conversation."""
        ids = self.render_for_completion([Message("user", IMAGE)], [1])
        return ids[: ids.index(self.image_id)]

    def render_conversation(
        self,
        messages: Sequence[Message],
        image_tokens: Sequence[int],
        *,
        sample: str = "conversation",
    ) -> Rendered:
        """Render for training: every `supervised` assistant message, and its end, has labels.

        Raises ConversationError, naming `sample`, if the number of `<image>` tokens and of images
        differ or nothing would be supervised.
        """
        ids: list[int] = []
        labels: list[int] = []
        for message, piece, given in self._pieces(messages):
            ids += [*piece, *self._after_end]
            labels += (
                [*[IGNORE_INDEX] * given, *piece[given:]]
                if message.role == "assistant" and message.supervised
                else [IGNORE_INDEX] * len(piece)
            )
            labels += [IGNORE_INDEX] * len(self._after_end)
        if self._chat.closes_text:
            ids.append(self.end_of_text_id)
            labels.append(IGNORE_INDEX)
        rendered = self._expand_image_tokens(ids, labels, image_tokens, sample)
        if rendered.supervised == 0:
            raise ConversationError(
                f"{sample} has no supervised token",
                got="no answer of the assistant that is supervised",
                wanted="at least one",
                do="Give it an answer or drop it",
            )
        return rendered

    def render_answered(
        self, messages: Sequence[Message], image_tokens: Sequence[int]
    ) -> tuple[list[int], int]:
        """The ids up to the end of the last message, which is an answer, and how many of them are
        the answer with its end.
        """
        whole = self.render_conversation(messages, image_tokens).ids
        ids = whole[: len(whole) - len(self._after_end) - self._chat.closes_text]
        *_, (_, piece, given) = self._pieces(messages)
        return ids, len(piece) - given

    def render_truncated(
        self, conversation: Conversation, image_tokens: int, length: int
    ) -> tuple[Rendered, int]:
        """As `render_conversation`, in at most `length` tokens: whole exchanges are dropped from
        the end, with their images; also returns how many. `images_in` tells which images are left.

        Raises ConversationError if not even the first exchange fits. An image, of `image_tokens`
        tokens, is never truncated.
        """
        messages = list(conversation.messages)
        called = f"conversation {conversation.id}"
        left_out = 0
        rendered = self.render_conversation(
            messages, [image_tokens] * len(conversation.images), sample=called
        )
        while len(rendered.ids) > length:
            last_question = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
            fewer = messages[:last_question]
            if not any(m.role == "assistant" and m.supervised for m in fewer):
                raise ConversationError(
                    f"{called} is too long",
                    got=f"{len(rendered.ids)} tokens in its first exchange",
                    wanted=f"at most {length}",
                    do="Raise train.<stage>.max_length or shorten it",
                )
            messages = fewer
            left_out += 1
            shown = sum(message.text.count(IMAGE) for message in messages)
            rendered = self.render_conversation(messages, [image_tokens] * shown, sample=called)
        return rendered, left_out

    def images_in(self, rendered: Rendered, image_tokens: int) -> int:
        """Number of images of `image_tokens` tokens in a rendered conversation: its first ones, if
        it lost exchanges.
        """
        return rendered.ids.count(self.image_id) // image_tokens

    def render_for_completion(
        self, messages: Sequence[Message], image_tokens: Sequence[int]
    ) -> list[int]:
        """Render for generation: the ids up to the start of the assistant's next message. Special
        tokens in text are escaped.
        """
        safe = [
            Message(m.role, self.escape_special_tokens(m.text, keep_image_tokens=True))
            for m in messages
        ]
        ids = [token for _, piece, _ in self._pieces(safe) for token in (*piece, *self._after_end)]
        ids += self._answer_ids
        return self._expand_image_tokens(
            ids, [IGNORE_INDEX] * len(ids), image_tokens, "the conversation"
        ).ids

    def escape_special_tokens(self, text: str, *, keep_image_tokens: bool = False) -> str:
        """`text` with every special token broken by a space, so that a user cannot forge a turn or
        an image by typing one.
        """
        return escape_special_tokens(
            text,
            [token for token in self._special_tokens if not (keep_image_tokens and token == IMAGE)],
        )

    def truncate_at_stop(self, ids: Sequence[int]) -> list[int]:
        """`ids` before the first stop token."""
        stop = set(self.stop_ids)
        return list(itertools.takewhile(lambda token: token not in stop, ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, without special tokens and surrounding whitespace."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @property
    def _chat(self) -> ChatFormat:
        return self.family.chat

    def _tokenize(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _tokenize_tag(self, role: str) -> list[int]:
        tag, token = self._chat.tag_of(role), self._chat.tag_token(role)
        behind = [] if tag == token else self._tokenize(tag)[1:]
        return [_id(self.tokenizer, token), *behind]

    def _pieces(self, messages: Sequence[Message]) -> Iterator[tuple[Message, list[int], int]]:
        """Each message with its ids, from the tag to `end`, and how many of them stand before its
        text. The format's own system message comes first if there is none.
        """
        if self._chat.default_system and not (messages and messages[0].role == "system"):
            messages = [Message("system", self._chat.default_system), *messages]
        asked = any(message.role == "user" for message in messages)
        for number, message in enumerate(messages, 1):
            last = asked and number == len(messages) and message.role == "assistant"
            given = self._answer_ids if last else self._tag_ids[message.role]
            yield message, self._tokenize_message(message, last), len(given)

    def _tokenize_message(self, message: Message, last_answer: bool) -> list[int]:
        known = self._cache.get((message, last_answer))
        if known is None:
            chat, tag = self._chat, self._chat.tag_of(message.role)
            before = chat.answer_prefix if last_answer else ""
            known = self._tokenize(f"{tag}{chat.stripped}{before}{message.text.strip()}{chat.end}")
            wanted = self._answer_ids if last_answer else self._tag_ids[message.role]
            if [*known[: len(wanted)], *known[-1:]] != [*wanted, self.end_id]:
                raise PartError(
                    f"the language part's tokenizer does not keep {self.family.title}'s chat tags"
                    " whole",
                    got=f"{tag}...{chat.end} as {known[:3]}...{known[-3:]}",
                    wanted=f"{', '.join(map(str, wanted))} first and {self.end_id} last",
                    do=f"Use {self.family.models} as it was published",
                )
            if len(self._cache) < CACHED_MESSAGES:
                self._cache[message, last_answer] = known
        return known

    def _expand_image_tokens(
        self, ids: list[int], labels: list[int], image_tokens: Sequence[int], sample: str
    ) -> Rendered:
        found = ids.count(self.image_id)
        if found != len(image_tokens):
            raise ConversationError(
                f"{sample} does not have one {IMAGE} for each of its pictures",
                got=f"{found} {IMAGE} and {len(image_tokens)} pictures",
                wanted="as many of one as of the other",
                do=f"Write {IMAGE} into a question once for each picture",
            )
        if not image_tokens:
            return Rendered(ids, labels)
        wide_ids: list[int] = []
        wide_labels: list[int] = []
        pictures = iter(image_tokens)
        for token, label in zip(ids, labels, strict=True):
            times = next(pictures) if token == self.image_id else 1
            wide_ids += [token] * times
            wide_labels += [label] * times
        return Rendered(wide_ids, wide_labels)


def escape_special_tokens(text: str, tokens: Iterable[str]) -> str:
    """`text` with a space inserted after the first character of each occurrence of `tokens`."""
    for token in tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def chat_template(config: Any) -> str:
    """The chat template that a model folder of this configuration, or config.json, has."""
    text = config.get("text_config", config) if isinstance(config, dict) else config.text_config
    return family_of_config(text).chat.template(IMAGE)


def _id(tokenizer: Any, token: str) -> int:
    found = token_id(tokenizer, token)
    if found is None:
        raise PartError(
            f"the tokenizer has no token {token}",
            do="Load it through phisense.chat_tokenizer.prepare_tokenizer",
        )
    return found
