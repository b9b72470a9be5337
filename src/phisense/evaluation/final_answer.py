r"""Extract the final answer of a text that holds a reasoning trace or marks its answer. All scoring
rules use it.

    <think>...</think>Yes                    the reasoning trace is removed, also if the chat
                                             template opened it and only </think> is present
    <think>... (cut off)                     no answer: max_new_tokens ended the reasoning trace
    <answer>Yes</answer>, \boxed{Yes}        the content
    </think>... **Final answer:** Yes        the content of that line, but only after a reasoning
                                             trace: elsewhere such words belong to the answer

Tag names are those that published models write (DeepSeek-R1, QwQ, Kimi-VL, Magistral, GLM-4.5V,
LLaVA-CoT, gpt-oss, Ollama, Cohere, MedGemma, Apriel). An answer may also mention a tag ("The sign
says <analysis>."): an opening tag counts at the beginning or if it is closed; a closing tag without
an opening one is a word if it stands within a line and nothing follows it; an empty mark is
ignored. A text without any of them is returned unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

FinalAnswerKind = Literal["plain", "thought", "tags", "cut off", "unknown"]


class FinalAnswer(NamedTuple):
    """The answer and `how` it was found: plain text, after a thought, inside of tags; "cut off"
    where a reasoning trace is not closed (the text is then ""); "unknown" for plain text with tags
    or control tokens that may mark something.
    """

    text: str
    how: FinalAnswerKind


_NAMES = (
    r"(?:seed:)?(?:think(?:ing)?(?:_process)?|thoughts?|reason(?:ing)?(?:_process)?|analysis|"
    r"reflection|scratchpad|rationale|cot|"
    r"chain_of_thought|(?:inner|internal)_monologue)"
)
_THOUGHT = re.compile(
    rf"(?P<open>(?:<|&lt;)(?:mm:)?{_NAMES}(?:\s[^<>]{{0,200}})?(?:>|&gt;)|"
    rf"<\|(?:begin_of_thought|START_THINKING|think)\|>|◁think▷|\[THINK\]|"
    r"<\|im_start\|>think(?=\n)|<unused94>(?:thought(?=\n))?|\AThinking\.\.\.(?=[ \t]*\n)|"
    r"\AHere are my reasoning steps:(?=\s))"
    rf"|(?P<close>(?:<|&lt;)/\s?(?:mm:)?{_NAMES}\s?(?:>|&gt;)"
    rf"|<\|(?:end_of_thought|END_THINKING|/think)\|>|◁/think▷|\[/THINK\]|"
    r"<\|im_start\|>answer(?=\n)|<unused95>|(?<=\n)\.\.\.done thinking\.|\[BEGIN FINAL RESPONSE\])",
    re.IGNORECASE,
)
#: Channels of gpt-oss, with its control tokens, and as text without them.
_CHANNELS = re.compile(
    r"<\|channel\|>(?P<name>analysis|commentary|final)(?:(?!<\|).)*<\|message\|>", re.DOTALL
)
_BARE_CHANNELS = re.compile(r"\Aanalysis(?=[A-Z]).*assistantfinal(?P<final>.*)\Z", re.DOTALL)
_TAGS = r"(?:final_?)?answer|ans|final|conclusion|solution|response"
_TAGGED = re.compile(
    rf"(?:<|&lt;)(?P<tag>{_TAGS})(?:>|&gt;)(?P<inside>.*?)"
    r"(?:(?:<|&lt;)/\s?(?P=tag)\s?(?:>|&gt;)|\Z)"
    r"|<\|(?:begin_of_|START_)(?P<mark>box|solution|answer|RESPONSE)\|>"
    r"(?P<marked>.*?)(?:<\|(?:end_of_|END_)(?P=mark)\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
#: LLaVA-CoT's stages of an answer that has no conclusion.
_STAGES = re.compile(
    r"\s*(?:<SUMMARY>.*?</SUMMARY>\s*)?<CAPTION>(?P<caption>.*?)</CAPTION>\s*",
    re.IGNORECASE | re.DOTALL,
)
#: An unknown tag around the whole text, or an unknown control token anywhere.
_UNKNOWN = re.compile(
    r"\s*<(?!(?:b|i|s|u|p|em|strong|html|body)\b)(?P<tag>\w+)>.*</(?P=tag)>\s*\Z|"
    r".*<\|[^|<>\n]{1,40}\|>",
    re.DOTALL,
)
_ONLY_CLOSED = re.compile(
    rf"\A(?P<inside>(?:(?!<).)*?)</(?:{_TAGS})>\s*\Z", re.IGNORECASE | re.DOTALL
)
_MARKED_AT_END = re.compile(
    rf"</\s?(?:{_TAGS})\s?>\s*\Z|<\|end_of_(?:box|solution|answer)\|>\s*\Z", re.IGNORECASE
)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_STYLED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
)
_ANSWER_LINE = re.compile(
    r"^[\s*_#>-]*(?:the\s+)?(?:(?:final|correct|"
    r"my)\s+)?answer(?:\s+is)?[\s*_]*[:：][\s*_]*(?P<said>\S.*?)[\s*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
#: Every marker matches one of these; most answers match none and need no further parsing.
_ANY = re.compile(
    r"<|&lt;|◁|\\f?boxed|\[/?THINK\]|\[BEGIN FINAL|\AThinking\.\.\.|\AHere are my|\Aanalysis",
    re.IGNORECASE,
)


def final_answer(text: str) -> FinalAnswer:
    """The final answer of `text`."""
    if _ANY.search(text) is None:
        return FinalAnswer(text, "plain")
    rest, thought = _without_channels(text)
    rest, closed, cut = _without_thoughts(rest)
    thought = thought or closed
    if cut:  # an answer marked at the very end counts, even if the reasoning trace was not closed
        return (
            FinalAnswer(_inside(rest, thought=True) or "", "tags")
            if _MARKED_AT_END.search(rest)
            else FinalAnswer("", "cut off")
        )
    inside = _inside(rest, thought=thought)
    if inside is not None:
        return FinalAnswer(inside, "tags")
    if not thought and (stages := _STAGES.fullmatch(text)):
        return FinalAnswer(stages["caption"].strip(), "tags")
    if not thought:
        return FinalAnswer(text, "unknown" if _UNKNOWN.match(text) else "plain")
    lines = list(_ANSWER_LINE.finditer(rest))
    return FinalAnswer(lines[-1]["said"] if lines else rest.strip(), "thought")


def final_answers(accepted: Sequence[str], answer: str) -> tuple[tuple[str, ...], str]:
    """The final answers of the references and of a given answer. An answer that equals a reference
    character by character is read like that reference, and a reference that would become empty is
    left unchanged.
    """
    right = tuple(final_answer(one).text or one for one in accepted)
    same = (end for one, end in zip(accepted, right, strict=True) if one.strip() == answer.strip())
    return right, next(same, final_answer(answer).text)


def _without_channels(text: str) -> tuple[str, bool]:
    if bare := _BARE_CHANNELS.match(text):
        return bare["final"], True
    channels = list(_CHANNELS.finditer(text))
    if not channels:
        return text, False
    last = channels[-1]
    said = re.sub(r"<\|(?:end|return|start)\|>.*\Z", "", text[last.end() :], flags=re.DOTALL)
    return (said if last["name"] == "final" else f"<think>{said}"), True


def _without_thoughts(text: str) -> tuple[str, bool, bool]:
    """Split off reasoning traces. Returns the text after the last one, or before it if nothing
    follows; whether there was one; and whether one is still open at the end, in which case its
    content is returned.
    """
    kept: list[str] = []
    thinking = found = False
    at = 0
    for match in _THOUGHT.finditer(text):
        if not thinking and _spoken_of(text, match):
            continue
        found = True
        if match["open"] and not thinking:
            kept.append(text[at : match.start()])
            thinking, at = True, match.end()
        elif match["close"]:
            # the template opened it, or it is nested: everything before it is reasoning
            if not thinking:
                kept = []
            thinking, at = False, match.end()
    if thinking:
        return text[at:], True, True
    return (
        next((piece for piece in reversed([*kept, text[at:]]) if piece.strip()), ""),
        found,
        False,
    )


def _spoken_of(text: str, match: re.Match[str]) -> bool:
    """Whether a tag outside of a reasoning trace is mentioned as a word of the answer: an opening
    tag within the text that is never closed, or a closing tag within a line that was not opened and
    is followed by nothing but punctuation.
    """
    if match["open"]:
        return bool(text[: match.start()].strip()) and not any(
            later["close"] for later in _THOUGHT.finditer(text, match.end())
        )
    within = re.search(r"\w[^\S\n]+\Z", text[: match.start()]) is not None
    return within and re.search(r"\w", text[match.end() :]) is None


def _inside(text: str, *, thought: bool) -> str | None:
    """The last marked answer of a text without reasoning traces, or None; if there are both, the
    box is inside of the tags. An unclosed tag counts at the beginning, or after a `thought`.
    """
    found = None
    tagged = [
        (match["inside"] if match["tag"] else match["marked"])
        for match in _TAGGED.finditer(text)
        if thought
        or not text[: match.start()].strip()
        or match.group().rstrip().endswith((">", "&gt;"))
    ]
    if tagged := [inside for inside in tagged if inside.strip()]:
        found = tagged[-1]
    elif only := _ONLY_CLOSED.match(text):
        found = only["inside"]
    if (boxed := _boxed(text if found is None else found)) is not None:
        found = boxed
    return None if found is None else found.strip()


def _boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, with balanced braces, without commands that only style
    text.
    """
    matches = [
        match
        for match in _BOXED.finditer(text)
        if not re.match(r"\s*(?:\}|\Z)", text[match.end() :])
    ]
    if not matches:
        return None
    start = end = matches[-1].end()
    depth = 1
    while end < len(text):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            break
        end += 1
    held, times = text[start:end], 1
    while times:
        held, times = _STYLED.subn(r"\1", held)
    return held.replace("\\ ", " ").replace("\\%", "%").replace("\\$", "$").strip(" $")
