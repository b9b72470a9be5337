"""Each rule beside one that was written on its own from the published description, on 2,000 random
sets of answers; and a control: rules that are a little different, which the sets tell apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import groupby, product

import numpy as np
import pytest

from phisense.conversations import Question
from phisense.evaluation.document_metrics import edit_distance
from phisense.evaluation.ranked_letters import parse_letter_ranked
from phisense.evaluation.task import ScoredAnswer
from phisense.evaluation.tasks import TASKS, amber, hallusionbench, ocrbench
from phisense.evaluation.yes_no import parse_yes_no

from . import adversarial
from .adversarial import LETTERS, lettered, number, polar, spoilt, text

Levenshtein = pytest.importorskip("rapidfuzz.distance", reason="comes with jiwer").Levenshtein

SETS, OF = 2000, 5  # sets of answers, answers of a set

Rule = Callable[[Question, str], float]
Asked = Iterator[tuple[Question, str]]


# --- questions with answers


def documents(chance: random.Random) -> tuple[Question, str]:
    right = tuple(text(chance, 4) for _ in range(chance.randrange(1, 4)))
    said = spoilt(chance, chance.choice(right)) if chance.random() < 0.6 else text(chance)
    return Question("1", None, "?", right, "form"), said


def charts(chance: random.Random) -> tuple[Question, str]:
    right = number(chance) if chance.random() < 0.7 else text(chance, 3)
    said = chance.choice((right, right.upper(), spoilt(chance, right), text(chance)))
    if plain := re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\.?%?\s*", right):
        value = float(plain[1]) * chance.choice((1, 1.04, 0.96, 1.06, 0.94, 0.01, 100))
        said = chance.choice((said, f"{value}", f"{value}%", f"{value / 100}", f" {value} "))
    return Question("1", None, "?", (right,), "human"), said


def inscriptions(chance: random.Random) -> tuple[Question, str]:
    kinds = [kind for of in ocrbench.GROUPS.values() for kind in of]
    kind = chance.choice((*kinds, *[ocrbench.EXPRESSIONS] * 5))
    written = ("\\frac { 1 } { 2 }\n", "x ^2 + K = 0 \n", "CENTRE", "１２ ＡＢ", text(chance, 3))
    right = tuple(chance.choice(written) for _ in range(chance.randrange(1, 3)))
    shown = chance.choice(right)
    forms = (text(chance), f"It says {shown.swapcase()}.", shown.replace(" ", ""), f"so {shown}")
    return Question("1", None, "?", right, kind), chance.choice(forms)


def choices(chance: random.Random) -> tuple[Question, str]:
    return Question("1", None, "?", (chance.choice("ABCD"),), "k", tuple("ABCD")), lettered(chance)


def reality(chance: random.Random) -> tuple[Question, str]:
    if chance.random() < 0.5:
        return choices(chance)
    right = chance.choice(("Yes", "2", "Downhill", "no", "İzmir", "left."))
    said = chance.choice((right, f"{right.upper()}.", f" {right}..", text(chance, 3)))
    return Question("1", None, "?", (right,), "open"), said


def diagrams(chance: random.Random) -> tuple[Question, str]:
    options = ("stem", "leaf", "B", "all of it", "root")[: chance.randrange(2, 6)]
    right = chance.choice(LETTERS[: len(options)])
    forms = ("{}", "{}.", " {}. stem", "({})", "{} stem", "{}).", "'{}'", "{}.B", "it is {}")
    said = chance.choice(forms).format(chance.choice((right, right.lower())))
    said = said if chance.random() < 0.6 else lettered(chance)
    return Question("1", None, "?", (right,), "texts", options), said


def college(chance: random.Random) -> tuple[Question, str]:
    found = f"validation_Math_{chance.randrange(900)}"
    if chance.random() < 0.5:
        count = chance.randrange(2, 9)
        pool = ("$6", "red cat", "<image 1>", "DNA", text(chance, 3), text(chance, 3))
        options = tuple(chance.choice(pool) for _ in range(count))
        long = f"After some thought the right one must be {chance.choice(options)}"
        said = chance.choice((lettered(chance), long, f"{long} or {options[0]}", text(chance, 14)))
        return Question(found, None, "?", (chance.choice(LETTERS[:count]),), "Math", options), said
    pool = (text(chance, 2), number(chance), str(chance.randrange(100)), "x", "CO2", "1.06")
    right = tuple(chance.choice(pool) for _ in range(chance.randrange(1, 3)))
    one = chance.choice(right)
    forms = (
        *(text(chance, 10), f"The answer is {one}.", f"x = {one}", f"{one} is x\nso is it {one}"),
        *(f"Therefore the result is {one} cm.", f"final answer \n = {one} = 3", "x", "is is is"),
        *(spoilt(chance, one), f"so {one} \n:", f"a = {one}\nb"),
    )
    return Question(found, None, "?", right, "Math"), chance.choice(forms)


# --- the rules, written again


def anls(question: Question, said: str, least: float = 0.5, cased: bool = False) -> float:
    """With an edit distance from a library."""
    best = 0.0
    for right in question.answers:
        pair = [" ".join((one if cased else one.lower()).split()) for one in (said, right)]
        whole = max(len(said.upper()), len(right.upper()))
        similarity = 1 - Levenshtein.distance(*pair) / whole if whole else 1.0
        best = max(best, similarity if similarity >= least else 0.0)
    return best


def relaxed(question: Question, said: str, percents: bool = True) -> float:
    """In exact fractions; at the very border, which is tried by hand, they would tell nothing."""

    def read(written: str) -> Fraction | None:
        share = written.endswith("%") and percents
        body = (written.rstrip("%") if share else written).strip()
        if body.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return Fraction(10**400)
        if not re.fullmatch(r"[+-]?(\d+(_\d+)*(\.(\d+)?)?|\.\d+)(e[+-]?\d+)?", body, re.I):
            return None
        return Fraction(repr(float(body))) / (100 if share else 1)

    one, two = read(said), read(question.answers[0])
    if one is None or not two:
        return float(said.lower() == question.answers[0].lower())
    if Fraction(10**400) in (one, two):
        return 0.0
    return float(abs(one - two) <= Fraction(1, 20) * abs(two) * (1 + Fraction(1, 10**12)))


def contains(question: Question, said: str, folds: bool = True, spaces: bool = False) -> float:
    def folded(written: str) -> str:
        if question.kind == ocrbench.EXPRESSIONS:
            kept = written.strip() if spaces else re.sub("[ \n]", "", written.strip())
            return kept.replace("\n", " ")
        wide = "".join(
            (" " if one == "\u3000" else chr(ord(one) - 65248) if "！" <= one <= "～" else one)
            if folds
            else one
            for one in written
        )
        return re.sub("\n", " ", wide.lower().strip())

    return float(any(folded(said).find(folded(one)) >= 0 for one in question.answers))


def ranked(question: Question, said: str, last: bool = True, loosely: bool = True) -> float:
    """Every place of every form is collected, with its rank, and the best is taken."""
    letters = "ABCD"
    core = said.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        core = core.strip(mark)
    padded, bare = f" {core} ", core.strip()
    found: list[tuple[int, int, str]] = []
    for rank, form in enumerate(("{} ", "{})", "{}:", "{}.", "({})"), 2):
        for letter in letters:
            pattern = re.escape(form.format(letter))
            places = [one.start() for one in re.finditer(pattern, padded)]
            found += [(rank, (max if last else min)(places), letter)] if places else []
    phrases = [
        *("".join(parts) for parts in product(("", "the "), ("", "correct "), ("choice is",))),
        *(
            "".join(parts)
            for parts in product(
                ("", "the "), ("", "correct ", "best "), ("answer is", "option is")
            )
        ),
        *("i choose", "i select", "i pick", "my answer is", "my choice is"),
        *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
    ]
    for phrase in set(phrases) - {"option is", "the option is"}:
        at = padded.lower().find(phrase)
        behind = padded[at + len(phrase) :] if at >= 0 and loosely else ""
        for letter in letters:
            if letter in behind:
                place = at + len(phrase) + behind.index(letter)
                found.append((7, place, letter))
    if re.match(f"[{letters}]", bare) and not bare[1:2].isalpha():
        found.append((10, 0, bare[0]))
    if re.search(f"[{letters}]$", bare) and not bare[-2:-1].isalpha():
        found.append((9, 0, bare[-1]))
    if not found:
        found = [(0, padded.rindex(one), one) for one in letters if one in padded]
    return float(bool(found) and max(found)[2] == question.answers[0])


def real_world(question: Question, said: str, periods: bool = True) -> float:
    if question.choices:
        return ranked(question, said)
    bare = said.lower().strip()
    bare = re.sub(r"\.+$", "", bare) if periods else bare
    return float(bare == question.answers[0].lower())


def leading(question: Question, said: str, spaced: bool = True) -> float:
    begun = re.match(r"\s*[A-Z]\." if spaced else r"[A-Z]\.", said)
    kept = begun[0].strip()[0] if begun else said
    kept = re.sub(r"[!-/:-@\[-`{-~]", "", kept)
    return float(kept.lower() == question.answers[0].lower())


def mmmu(question: Question, said: str, tail: str = "last", words: int = 5) -> float:
    if not said.strip():
        return 0.0
    if not question.choices:
        return _mmmu_open(question, said, tail)
    core = said
    for mark in ",.!?;:'":
        core = core.strip(mark)
    core = f" {core} "
    texts = dict(zip(LETTERS, question.choices, strict=False))
    steps = [
        ({one: core.rfind(f"({one})") for one in texts if f"({one})" in core}),
        ({one: core.rfind(f" {one} ") for one in texts if f"{one} " in core}),
        ({one: core.rfind(f" {one} ") for one in texts if f"{one}." in core}),
        {
            one: core.lower().rfind(option.lower())
            for one, option in texts.items()
            if option.lower() in core.lower() and len(core.split()) > words
        },
    ]
    places = next((step for step in steps if step), None)
    if places is None:
        return TASKS["mmmu"].score(question, "?")  # the draw, which is tried on its own
    latest = max(places.values())
    return float(next(one for one, at in places.items() if at == latest) == question.answers[0])


def _mmmu_open(question: Question, said: str, tail: str) -> float:
    found = [value(one) for one in _key_parts(said, tail)]
    return float(any(_holds(one, value(right)) for right in question.answers for one in found))


def value(written: str) -> str | float:
    try:
        return round(float(written.strip().replace(",", "")), 2)
    except ValueError:
        return written.strip().lower()


def _key_parts(said: str, tail: str) -> list[str]:
    cues = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "]
    lines = said.strip().strip(".").lower().split("\n")
    keys = []
    for at, line in enumerate(lines):
        best = ""
        for cue in cues + (["="] if at == len(lines) - 1 else []):
            if cue in line:
                behind = line.split(cue)[-1 if tail == "last" else 1].strip()
                best = behind if not best or len(behind) < len(best) else best
        if best and not (len(best) == 1 and best in ":,.!?;'"):
            keys.append(best)
    found = keys = keys or ["\n".join(lines)]
    for key in keys:
        numbers = re.findall(r"-?\b\d{1,3}(?:,\d{3})+\b", key)
        numbers += re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", key)
        numbers += re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])", key)
        found = found + numbers
    return found


def _holds(said: str | float, right: str | float) -> bool:
    """A single character has a space beside it, in the answer and in the reference."""
    if isinstance(said, float) or isinstance(right, float):
        return said == right
    shown = {f" {said}", f"{said} "} if len(said) == 1 else {said}
    sought = {f" {right}", f"{right} "} if len(right) == 1 else {right}
    return any(one in whole for one in sought for whole in shown)


RULES: dict[str, tuple[Callable[[random.Random], tuple[Question, str]], Rule]] = {
    "docvqa": (documents, anls),
    "chartqa": (charts, relaxed),
    "ocrbench": (inscriptions, contains),
    "mmstar": (choices, ranked),
    "realworldqa": (reality, real_world),
    "ai2d": (diagrams, leading),
    "mmmu": (college, mmmu),
}
#: A little different each, as a slip would make it.
SLIPS: dict[str, tuple[Rule, ...]] = {
    "docvqa": (partial(anls, least=0.51), partial(anls, cased=True)),
    "chartqa": (partial(relaxed, percents=False),),
    "ocrbench": (partial(contains, folds=False), partial(contains, spaces=True)),
    "mmstar": (partial(ranked, last=False), partial(ranked, loosely=False)),
    "realworldqa": (partial(real_world, periods=False),),
    "ai2d": (partial(leading, spaced=False),),
    "mmmu": (partial(mmmu, tail="first"), partial(mmmu, words=8)),
}


def sets(task: str) -> Iterator[list[tuple[Question, str]]]:
    chance = random.Random(f"answers to {task}")
    for _ in range(SETS):
        yield [RULES[task][0](chance) for _ in range(OF)]


@pytest.mark.slow
@pytest.mark.parametrize("task", RULES)
def test_scores_are_those_of_the_rule_written_again(task: str) -> None:
    rule, earned = RULES[task][1], 0
    for answers in sets(task):
        for question, said in answers:
            ours = TASKS[task].score(question, said)
            assert ours == rule(question, said), (question, said)
            earned += ours > 0
    assert 0.04 < earned / (SETS * OF) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "at"), [(task, at) for task, slips in SLIPS.items() for at in range(len(slips))]
)
def test_control_the_sets_tell_a_slip(task: str, at: int) -> None:
    slip = SLIPS[task][at]
    assert any(
        TASKS[task].score(question, said) != slip(question, said)
        for answers in sets(task)
        for question, said in answers
    )


def test_the_letters_of_the_rule_and_its_draw() -> None:
    """No answer is read as a letter that is not offered, and a draw is always the same one."""
    chance = random.Random(3)
    for _ in range(SETS):
        assert parse_letter_ranked(lettered(chance)) in (*"ABCD", None)
    drawn = [
        next(letter for letter in "ABCD" if _drawn_is(f"validation_Math_{i}", letter))
        for i in range(400)
    ]
    assert all(60 < drawn.count(letter) < 140 for letter in "ABCD")


def _drawn_is(number: str, letter: str) -> bool:
    question = Question(number, None, "?", (letter,), "Math", tuple("wxyz"))
    return TASKS["mmmu"].score(question, "?") == TASKS["mmmu"].score(question, "no idea") == 1.0


def test_edit_distance_is_the_librarys() -> None:
    chance = random.Random(5)
    for _ in range(SETS):
        one, other = text(chance), text(chance)
        assert edit_distance(one, other) == Levenshtein.distance(one, other)
        assert edit_distance(one.split(), other.split()) == Levenshtein.distance(
            one.split(), other.split()
        )


# --- rules whose figures are of groups of answers


def scored(task: str, asked: Sequence[tuple[Question, str]]) -> list[ScoredAnswer]:
    return [ScoredAnswer(q, said, TASKS[task].score(q, said)) for q, said in asked]


def figures(task: str, asked: Sequence[tuple[Question, str]]) -> dict[str, float]:
    """Without intervals, which would take the time of all."""
    sums = TASKS[task].aggregate(scored(task, asked)).sum(0, keepdims=True)
    return {name: float(value[0]) for name, value in TASKS[task].metrics(sums).items()}


@pytest.mark.slow
def test_hallusionbenchs_figures_by_counting_groups() -> None:
    chance = random.Random(11)
    differs = 0
    for _ in range(SETS):
        asked = []
        for at, figure, number_ in product(range(chance.randrange(1, 4)), range(2), range(3)):
            if chance.random() < 0.8:
                name = f"VD/map/{at}/{figure}/{number_}"
                right = chance.choice(("yes", "no"))
                question = Question(name, "a.png", "Is it?", (right,), "map", group=f"VD/map/{at}")
                asked.append((question, polar(chance)))
        if not asked:
            continue
        found = figures("hallusionbench", asked)
        for prefix, read in (
            ("", lambda said: parse_yes_no(said, "Is it?")),
            ("lmms_", lambda said: "yes" if re.search("yes", said, re.I) else "no"),
        ):
            marks = {q.id.split("/", 2)[2]: read(said) == q.answers[0] for q, said in asked}
            wanted = {
                f"{prefix}a_acc": np.mean(list(marks.values())),
                f"{prefix}f_acc": share_of_groups(marks, (0, 1)),
                f"{prefix}q_acc": share_of_groups(marks, (0, 2)),
            }
            if f"{prefix}a_acc" in found:
                differs += bool(prefix)
                assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
            else:
                assert wanted["lmms_a_acc"] == found["a_acc"]
    assert differs > SETS / 4


def share_of_groups(marks: dict[str, bool], parts: tuple[int, int]) -> float:
    """The share of groups, by two parts of their names, all of whose answers are correct."""
    keyed = sorted((tuple(name.split("/")[i] for i in parts), mark) for name, mark in marks.items())
    groups = [all(mark for _, mark in of) for _, of in groupby(keyed, key=lambda one: one[0])]
    return sum(groups) / len(groups)


@pytest.mark.slow
def test_ambers_figures_by_a_table_of_truth_and_answer() -> None:
    chance = random.Random(13)
    dimensions = {kind: name for name, kinds in amber.DIMENSIONS.items() for kind in kinds}
    for _ in range(SETS):
        asked = [
            (
                Question(
                    str(i),
                    "a.jpg",
                    "Is it?",
                    (chance.choice(("yes", "no", "no")),),
                    chance.choice(tuple(dimensions)),
                ),
                polar(chance),
            )
            for i in range(chance.randrange(1, 25))
        ]
        found = figures("amber", asked)
        read = [(q, parse_yes_no(said, q.text)) for q, said in asked]
        wanted = of_table([(q.answers[0], said) for q, said in read])
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
        met = {dimensions[q.kind] for q, _ in read}
        for name in met if len(met) > 1 else ():
            part = of_table([(q.answers[0], s) for q, s in read if dimensions[q.kind] == name])
            for metric, value in part.items():
                assert found[f"{name}_{metric}"] == pytest.approx(value, abs=1e-12)


def of_table(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Pairs of truth and answer; "no" is what is to be found."""
    found = sum(pair == ("no", "no") for pair in pairs)
    said, true = (sum(pair[i] == "no" for pair in pairs) for i in (1, 0))
    precision, recall = found / said if said else 0.0, found / true if true else 0.0
    return {
        "accuracy": sum(truth == answer for truth, answer in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * found / (said + true) if said + true else 0.0,
    }


def test_lmms_readings_of_yes_and_no() -> None:
    chance = random.Random(17)
    for _ in range(SETS):
        said = polar(chance)
        has = {one: one in said.lower() for one in ("yes", "no")}
        assert hallusionbench.parse_answer_lmms(said) == ("yes" if has["yes"] else "no")
        wanted = "yes" if has["yes"] else "no" if has["no"] else "other"
        assert amber.parse_answer_lmms(said) == wanted


@pytest.mark.slow
def test_mmstars_average_is_that_of_sub_categories() -> None:
    chance = random.Random(19)
    for _ in range(SETS):
        kinds = ("geometry", "recognition", "localization")[: chance.randrange(1, 4)]
        asked = []
        for _ in range(chance.randrange(1, 12)):
            question, said = choices(chance)
            named = Question("1", None, "?", question.answers, chance.choice(kinds), tuple("ABCD"))
            asked.append((named, said))
        of: dict[str, list[float]] = {}
        for question, said in asked:
            of.setdefault(question.kind, []).append(ranked(question, said))
        found = figures("mmstar", asked)
        assert found["average"] == pytest.approx(np.mean([np.mean(one) for one in of.values()]))
        assert found["accuracy"] == pytest.approx(np.mean([x for one in of.values() for x in one]))


def test_numbers_at_the_border() -> None:
    """By hand: 5 % is within, a percentage is a hundredth, zero has no 5 %."""
    assert adversarial.number(random.Random(0))
    score = TASKS["chartqa"].score

    def credit(right: str, said: str) -> float:
        return score(Question("1", None, "?", (right,), "human"), said)

    assert [credit("100", said) for said in ("105", "95", "105.1", "94.9")] == [1, 1, 0, 0]
    assert [credit("12%", said) for said in ("12%", "0.12", "12", "12.5%")] == [1, 1, 0, 1]
    assert [credit("0", said) for said in ("0", "0.0", "0%")] == [1, 0, 0]
    assert [credit("1,000", said) for said in ("1,000", "1000")] == [1, 0]
    assert [credit("Yes", said) for said in ("yes", "Yes ", "YES.")] == [1, 0, 0]
    assert [credit("nan", said) for said in ("nan", "1")] == [0, 0]
