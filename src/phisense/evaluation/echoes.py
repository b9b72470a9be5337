"""Detect texts that repeat their input: the question, the question with lines around it, or a
prompt that contains it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from ..conversations import IMAGE, Question
from ..unicode_scripts import UNSPACED
from .answer_metrics import OPTION_LETTERS, normalize_any_script

#: "whole": every text is its input without an answer; "begins": every text begins with its
#: question, and continues differently.
Echo = Literal["no", "begins", "whole"]

# "Yes", after an echoed question, is an answer; "Please answer yes or no." is none
_WORDS_OF_A_PROMPT = 3
_ASKED = "\0"  # placeholder for the question and its options
_ROLE = (
    r"\b(?:assistant|answer|response|reply|output|gpt|model|bot|ai|caption|antwort|réponse|"
    r"respuesta|resposta|risposta|ответ)\b"
    r"|助手|回答|答案"
)
_MARKS = (
    r"[\s#<>|\[\]/*_\-]|\b(?:im_start|im_end|start_header_id|end_header_id|eot_id|start_of_turn|"
    r"end_of_turn|inst|e?os|end"
    r"|short|brief|final|your|the)\b"
)
# a prompt that ends where the answer would begin
_TURN = re.compile(rf"(?:(?:{_ROLE}|{_MARKS})[:：]?)*")
_ANSWERED = re.compile(rf"(?:{_ROLE})[\s*|>]*[:：][\s*]*\w")
_ASKS = re.compile(
    r"\W*(?:please|kindly|answer(?!\s*[:：,.]|\s+is\b)|respond|reply\s+with|describe|explain|write"
    r"|give|provide|generate|list|identify|name"
    r"|tell|choose|select|pick|caption\s+(?:this|the)|look\s+at|use\s+(?:a|one|only)|bitte|antworte"
    r"|beschreib|nenne|d[ée]cri[sv]|répond"
    r"|descri[bv]|respond[ae]|rispondi|опиши|ответь|请|請|描述|用一|설명|説明)",
)
_QUESTION = re.compile(
    r"\W*(?:what|which|who|whose|where|when|why|how|is|are|do|does|did|was|were)\b"
    r".*[?？]\W*(?:answer\W*)?"
)
_WANTS_A_PICTURE = re.compile(
    r"\b(?:upload|attach|share|resend|provide|send)\b[^.]*"
    r"\b(?:images?|pictures?|photos?|details|context|url|link|file)\b"
)
_LISTED = re.compile(rf"\b(?:options|choices)\s*:?\s*(?={_ASKED})")  # some questions have none
_NO_HINT = re.compile(r"\b(?:context|hint)\s*:?\s*(?:n/a\b|none\b|null\b)?")


def detect_echo(
    said: Sequence[tuple[Question, str]], is_correct: Callable[[Question, str], bool]
) -> Echo:
    """Classify the texts of a column by how they repeat the questions of their rows. A text that is
    correct in any row counts as an answer, not as an instruction.
    """
    if not said:
        return "no"

    def answers(texts: Sequence[str]) -> bool:
        return any(
            text and not _ASKS.match(text) and is_correct(question, text)
            for (question, _), text in zip(said, texts, strict=True)
        )

    if all(same_question(question.text, text) for question, text in said):
        return (
            "begins"
            if answers([_last_line(question, text) for question, text in said])
            else "whole"
        )
    if _is_one_prompt(said):
        return "whole"
    rest = _around(*said[0])
    if (
        len(said) > 1
        and rest is not None
        and all(_around(question, text) == rest for question, text in said[1:])
    ):
        behind = rest.rpartition(_ASKED)[2].strip()
        if _says_nothing(behind) or (_only_asks(behind) and not answers([behind] * len(said))):
            return "whole"
    return "begins" if all(_begins(question.text, text) for question, text in said) else "no"


def _last_line(question: Question, text: str) -> str:
    """The last line of a text after its question and options, which may be an answer to it."""
    found = folded_lines(text)
    last = found[-1] if found[-1] not in folded_lines(question.text) else ""
    options = _without_options(question, " ".join(found))
    return last if options.endswith(last) else ""


def _is_one_prompt(said: Sequence[tuple[Question, str]]) -> bool:
    """Whether all rows hold one identical instruction ("Describe this image."). An identical answer
    in all rows is that of a model that ignores the image.
    """
    if len(said) < 2 or len({text.strip() for _, text in said}) > 1:
        return False
    text = " ".join(folded_lines(said[0][1]))
    asks = (_ASKS.match(text) or _QUESTION.fullmatch(text)) and not _WANTS_A_PICTURE.search(text)
    wanted = (answer for question, _ in said for answer in question.answers)
    return (
        bool(asks)
        and _length(text) >= _WORDS_OF_A_PROMPT
        and all(normalize_any_script(answer) != normalize_any_script(text) for answer in wanted)
    )


def _only_asks(behind: str) -> bool:
    """Whether the words after a question are an instruction how to answer it, or empty, rather than
    an answer.
    """
    if _says_nothing(behind):
        return True
    return not _ANSWERED.search(behind) and (
        _ASKS.match(behind) is not None or _length(behind) >= _WORDS_OF_A_PROMPT
    )


def _says_nothing(behind: str) -> bool:
    return _TURN.fullmatch(behind.strip(" .:：\"'")) is not None


def _length(text: str) -> int:
    """Length in words; two characters of a script without spaces count as one word."""
    return len(text.split()) + len(UNSPACED.findall(text)) // 2


def _around(question: Question, text: str) -> str | None:
    """`text` with the question's lines, and its options if all are listed, replaced by
    placeholders. None if it holds no line of the question.
    """
    plain, asked = " ".join(folded_lines(text)), folded_lines(question.text)
    whole = " ".join(asked)
    found = False
    for line in [whole] if whole in plain else asked:
        for part in (line, line.partition(": ")[2]):
            if part and part in plain:
                plain, found = plain.replace(part, _ASKED, 1), True
                break
    if not found:
        return None
    plain = _LISTED.sub("", _without_options(question, plain))
    return re.sub(rf"[{_ASKED}\s]*{_ASKED}\s*", _ASKED, _NO_HINT.sub("", plain)).strip(" ")


def _without_options(question: Question, plain: str) -> str:
    """Replace options that are listed with their letters by placeholders, if all of them are."""
    listed = plain
    for letter, choice in zip(OPTION_LETTERS, question.choices, strict=False):
        words = re.escape(" ".join(choice.split()).casefold())
        form = rf"\(?\b{letter.lower()}[).:]+\s*{words}(?![^\W\u0e00-\uffff])[,;.]?"
        listed, times = re.subn(form, _ASKED, listed, count=1)
        if not times:
            return plain
    return listed


def _begins(asked: str, text: str) -> bool:
    ours, theirs = (" ".join(folded_lines(one)) for one in (asked, text))
    return bool(ours) and theirs.startswith(ours)


def same_question(asked: str, text: str) -> bool:
    """Whether `text` is the question, or one of the two is the other with lines before (a hint) or
    after (options, instructions).
    """
    ours, theirs = folded_lines(asked), folded_lines(text)
    if not theirs or not ours:
        return False
    few, many = sorted((ours, theirs), key=len)
    return few in (many[: len(few)], many[len(many) - len(few) :])


def question_forms(text: str) -> list[str]:
    """Forms in which a question may occur elsewhere: the whole text, each line, and each line up to
    its question mark.
    """
    found = folded_lines(text)
    cut = [line[: line.index(mark) + 1] for line in found for mark in "?？" if mark in line]
    return list(dict.fromkeys([" ".join(found), *found, *cut]))


def folded_lines(text: str) -> list[str]:
    """The non-empty lines of a text, with normalized white space and case-folded."""
    found = (" ".join(line.split()).casefold() for line in text.replace(IMAGE, "\n").split("\n"))
    return [line for line in found if line]
