"""`Family`: what phisense has to know of a language model beyond its configuration.

Plain data and arithmetic: importing a family imports neither torch nor transformers. Classes of
transformers are named by strings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

ROLES = ("system", "user", "assistant")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    r"""The text around each message, and the tokens that end one.

                        Phi-3             Phi-4-mini        SmolLM2, Qwen2.5, Qwen3 (ChatML)
        tag             <|{role}|>        <|{role}|>        <|im_start|>{role}\n
        stripped        \n
        end             <|end|>           <|end|>           <|im_end|>
        after_end                                           \n
        end_of_text     <|endoftext|>     <|endoftext|>     <|endoftext|>
        closes_text     yes               yes               no
        default_system                                      "You are ..." (Qwen3: none)
        answer_prefix                                       (Qwen3: an empty <think> block)

    `end` and `end_of_text` are one token each; `tag` may be several, `after_end` none. `stripped`
    is white space that templates write after a tag and after `end` and that the tokens strip, so
    no token stands for it. `closes_text` says whether `end_of_text` follows a whole conversation.
    `default_system` is the system message of a conversation that begins with another. Behind the
    assistant's tag stands `answer_prefix`: before an answer that is to be generated, and before
    the last answer of a conversation, but not before earlier ones. It is given, not learned.
    `trims` says whether the template of model folders strips texts, as `Prompt` does; where
    `stripped` is set, the tokens do it. `special_tokens` is the vocabulary's order, for tokenizers
    that are built from scratch and for texts that are escaped without a tokenizer.
    """

    tag: str
    end: str
    end_of_text: str
    special_tokens: tuple[str, ...]
    stripped: str = ""
    after_end: str = ""
    closes_text: bool = True
    default_system: str = ""
    answer_prefix: str = ""
    trims: bool = False

    def tag_of(self, role: str) -> str:
        """The text that opens a message of `role`, without `stripped`."""
        return self.tag.replace("{role}", role)

    def tag_token(self, role: str) -> str:
        """The special token that a tag begins with; for most formats the whole tag."""
        tag = self.tag_of(role)
        return next((token for token in self.special_tokens if tag.startswith(token)), tag)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that the format is written with: those of tags, `end` and
        `end_of_text`, each once.
        """
        tags = map(self.tag_token, ROLES)
        return tuple(dict.fromkeys((*tags, self.end, self.end_of_text)))

    def template(self, image: str) -> str:
        """Jinja chat template of model folders: `apply_chat_template` of plain transformers renders
        what `Prompt` renders.

        A content part of type "image" is written as `image` at the start of its message, followed
        by a line break, as in the training data.
        """
        after = _jinja(self.stripped)
        tags = "".join(
            f"{{%- {'if' if role == ROLES[0] else 'elif'} message['role'] == '{role}' -%}}{{{{-"
            f" '{_jinja(self.tag_of(role))}{after}' -}}}}"
            for role in ROLES
        )
        tags += (
            "{%- else -%}{{- raise_exception('roles are system, user and assistant; got ' ~"
            " message['role']) -}}{%- endif -%}"
        )
        said = (
            "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
            + f"{{%- for part in message['content'] if part['type'] == 'image' -%}}{{{{-"
            f" '{image}\\n' -}}}}{{%- endfor -%}}"
            + "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text']"
            " -}}{%- endfor -%}" + "{%- endif -%}"
        )
        if self.trims:
            said = "{%- set said -%}" + said + "{%- endset -%}{{- said | trim -}}"
        end_of_text = (
            f"{{%- else -%}}{{{{- '{_jinja(self.end_of_text)}' -}}}}" if self.closes_text else ""
        )
        return (
            "{%- for message in messages -%}"
            + self._jinja_default_system()
            + tags
            + self._jinja_last_answer()
            + said
            + f"{{{{- '{_jinja(self.end)}{after}{_jinja(self.after_end)}' -}}}}{{%- endfor -%}}"
            + f"{{%- if add_generation_prompt -%}}{{{{- '{_jinja(self.tag_of('assistant'))}{after}"
            f"{_jinja(self.answer_prefix)}' -}}}}{end_of_text}{{%- endif -%}}"
        )

    def llama_cpp_template(self, lead: str) -> str:
        """Jinja chat template for llama.cpp, whose tokenizer does not strip white space after tags:
        here there is none.

        An image is a marker in the text (`<__media__>`), followed by a line break. `lead` is the
        prefix that the tokenizer itself adds to a word after a tag.
        """
        before, _, behind = (_jinja(part) for part in self.tag.partition("{role}"))
        return (
            "{%- for message in messages -%}"
            + "{%- if message['content'] is string -%}{%- set said = message['content'] -%}"
            + "{%- else -%}{%- set said = message['content'] | map(attribute='text') |"
            " join('\\n') -%}{%- endif -%}"
            + self._jinja_default_system()
            + f"{{{{- '{before}' ~ message['role'] ~ '{behind}' -}}}}"
            + self._jinja_last_answer()
            + "{%- if not said.startswith('<__') -%}"
            + f"{{{{- '{lead}' -}}}}{{%- endif -%}}"
            + f"{{{{- said | trim ~ '{_jinja(self.end)}{_jinja(self.after_end)}' -}}}}"
            + "{%- endfor -%}"
            + f"{{%- if add_generation_prompt -%}}{{{{- '{_jinja(self.tag_of('assistant'))}"
            f"{_jinja(self.answer_prefix)}' -}}}}{{%- endif -%}}"
        )

    def ollama_template(self, lead: str) -> str:
        """The same for Ollama, in Go's template language."""
        begin, before_end = "{{- range .Messages }}", "" if self.after_end else "-"
        if self.default_system:
            system = self.tag_of("system") + self.default_system + self.end + self.after_end
            begin = (
                "{{- range $i, $_ := .Messages }}"
                f'{{{{- if and (eq $i 0) (ne .Role "system") }}}}{system}{{{{ end }}}}'
            )
        return (
            f"{begin}{self.tag.replace('{role}', '{{ .Role }}')}{lead}"
            f"{{{{ .Content }}}}{self.end}{self.after_end}{{{{{before_end} end }}}}"
            f"{self.tag_of('assistant')}{self.answer_prefix}"
        )

    def _jinja_default_system(self) -> str:
        """At the start of the loop over messages: the system message of a conversation that has
        none.
        """
        if not self.default_system:
            return ""
        system = self.tag_of("system") + self.default_system + self.end + self.after_end
        return (
            "{%- if loop.first and message['role'] != 'system' -%}"
            f"{{{{- '{_jinja(system)}' -}}}}{{%- endif -%}}"
        )

    def _jinja_last_answer(self) -> str:
        """Behind a tag: what stands before the last answer to a user."""
        if not self.answer_prefix:
            return ""
        return (
            "{%- if loop.last and message['role'] == 'assistant' and"
            " messages | selectattr('role', 'equalto', 'user') | list -%}"
            f"{{{{- '{_jinja(self.answer_prefix)}' -}}}}{{%- endif -%}}"
        )


@dataclass(frozen=True, slots=True)
class ConfigDefaults:
    """What transformers' configuration class takes for keys that config.json leaves out."""

    vocab_size: int
    special_token_ids: Mapping[str, int | None]


def fixed_gguf_name(name: str) -> Callable[[str, Collection[str]], str]:
    """A `GGUFFormat.name` that leaves the folder's name out: llama.cpp takes a model with "phi-3"
    in its name for a Phi-3.
    """
    return lambda folder, pieces: name


@dataclass(frozen=True, slots=True)
class GGUFFormat:
    """How llama.cpp stores such a model.

    `layer_names` maps weights of a layer to tensors of a block, without `.weight`; of those in
    `biased` there is a `.bias`, too. `block_shapes` returns the shape of each such tensor, row
    length first, for width, width of the MLP, heads, heads of the keys and width of a head; the
    biases are named with `.bias`. The rows of the matrices in `interleaved` are stored in another
    order: llama.cpp rotates neighbouring elements of a head, transformers those half a head apart.
    `name` returns `general.name` for a folder's name and the vocabulary's pieces: llama.cpp reads
    tokenizer behaviour from it. (How byte-level BPE splits a text follows from the tokenizer, see
    `pre_tokenizers.py`.)
    """

    architecture: str
    layer_names: Mapping[str, str]
    block_shapes: Callable[[int, int, int, int, int], Mapping[str, Shape]]
    name: Callable[[str, Collection[str]], str]
    biased: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A language family: one object in one file, named in `seams.FAMILY_MODULES`.

    Identity. `title` and `models` are words of messages ("Phi-3", "a Phi-3 or Phi-3.5 model").
    `model_type` is config.json's. Families that share it are told apart by facts: `config_marks`
    are keys of config.json with their values, `token_marks` tokens with their ids. Of several whose
    marks hold, that with the most is taken. A family without marks is the default of its model
    type, or of its chat tokens.

    Conversation. `chat` is the text around each message. `image_tokens` are special tokens of the
    published vocabulary that `chat` never writes, best first: where no row is free, `<image>` takes
    the place of the first that the tokenizer has.

    Model. `model_class` names the class of transformers. `max_window` is the largest context window
    in tokens. `lora_targets` are the linear layers of one decoder layer by name, `lora_shapes`
    their (inputs, outputs) for a configuration.

    Files. `config_defaults` are the values of keys that config.json leaves out, `rope_types` the
    kinds of position factors that it may name. `gguf` is None if llama.cpp has no such model.
    `tokenizer_classes` are the classes that tokenizer_config.json may name besides those of every
    family, `tokenizer_patterns` the regular expressions that tokenizer.json may split texts with.
    `known_configs` are configurations of published models by hub id, with which `doctor` plans
    without a download.
    """

    title: str
    models: str
    model_type: str
    model_class: str
    chat: ChatFormat
    max_window: int
    lora_targets: tuple[str, ...]
    lora_shapes: Callable[[Any], tuple[tuple[int, int], ...]]
    config_defaults: ConfigDefaults
    rope_types: tuple[str, ...] = ("default",)
    gguf: GGUFFormat | None = None
    config_marks: Mapping[str, Any] = field(default_factory=dict)
    token_marks: Mapping[str, int] = field(default_factory=dict)
    tokenizer_classes: tuple[str, ...] = ()
    tokenizer_patterns: tuple[str, ...] = ()
    image_tokens: tuple[str, ...] = ()
    known_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def lora_pattern(self) -> str:
        """Regular expression that matches every matrix of the language model's layers."""
        names = "|".join(name.split(".")[-1] for name in self.lora_targets)
        return rf".*language_model.*\.({names})"

    def load_class(self) -> Any:
        """The class of transformers; imports it."""
        return getattr(import_module("transformers"), self.model_class)


def _jinja(text: str) -> str:
    """`text` as it stands in a Jinja string in single quotes."""
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
