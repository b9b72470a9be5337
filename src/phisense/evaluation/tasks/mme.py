"""MME (Fu et al., 2023): two questions about each image, one whose answer is yes and one no; ten
perception categories, four cognition categories.

The folder MME_Benchmark_release_version, in which each category is a folder of images with a .txt
of the same name (question, tab, answer), or of `images` and `questions_answers_YN`; files
CATEGORY.txt with image, question, answer; or lmms-lab/MME.

A category's score is its accuracy plus its "accuracy+", the share of images both of whose questions
are answered correctly, each in percent; perception (at most 2,000) and cognition (800) are sums of
these (calculation.py of MME's eval_tool).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, Row, check_questions, read_source, rows_of, text_of
from ..caveats import Caveat, of_unread
from ..task import Array, ScoredAnswer, Task, mean
from .prompts import SHORT_ANSWER

HUB = HubDefaults("test")
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_CATEGORIES = PERCEPTION + COGNITION
_ASKS = "Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg", ".bmp", ".webp")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    times: Counter[str] = Counter()
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in _rows(source):
                kind = text_of(row, "category", of=source)
                group = text_of(row, "question_id", of=source)
                if kind not in MME_CATEGORIES:
                    raise DataError(
                        f"{source}: unknown category of MME",
                        got=kind,
                        wanted=", ".join(MME_CATEGORIES),
                    )
                label = text_of(row, "answer", of=source).strip().rstrip(".").lower()
                if label not in ("yes", "no"):
                    raise DataError(
                        f"{source}: the answer to a question about {group} is neither yes nor no",
                        got=label,
                    )
                times[group] += 1
                number = group if times[group] == 1 else f"{group}#{times[group]}"
                image = picture_name(row, unpacked, source)
                questions.append(
                    Question(
                        number,
                        image,
                        text_of(row, "question", of=source),
                        (label,),
                        kind,
                        group=group,
                    )
                )
    odd = [group for group, n in times.items() if n != 2]
    if odd:
        raise DataError(
            f"MME has two questions about each picture; {len(odd)} have another number",
            got=f"{times[odd[0]]} about {odd[0]}",
        )
    return check_questions(questions, sources)


def _rows(source: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        yield from _listing(path)
    elif path.is_dir() and any(
        any(path.glob(listing)) for listing in ("*/*.txt", "*/questions_answers_YN/*.txt")
    ):
        for folder in sorted(
            one for one in path.iterdir() if one.is_dir() and one.name in MME_CATEGORIES
        ):
            yield from _category(folder)
    else:
        yield from rows_of(read_source(source, HUB), source)


def _listing(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        cells = line.rstrip("\n").split("\t")
        if len(cells) < 3:
            raise DataError(
                f"{path}, line {number} is not picture, question, answer",
                got=f"{len(cells)} cells between tabs",
            )
        yield {
            "category": path.stem,
            "question_id": f"{path.stem}/{cells[0]}",
            "image": f"{path.stem}/{cells[0]}",
            "question": cells[1],
            "answer": cells[2],
        }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", got=str(error)) from error


def _category(folder: Path) -> Iterator[Row]:
    """Questions of a category's folder; images are named as in LLaVA, by the category and their
    file.
    """
    apart = (folder / "images").is_dir()
    pictures = {
        one.stem: one
        for one in sorted((folder / "images" if apart else folder).iterdir())
        if one.suffix.lower() in _PICTURES
    }
    for listing in sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt")):
        if listing.stem not in pictures:
            raise DataError(f"{listing} has no picture", wanted=f"{listing.stem}.jpg or .png")
        picture = pictures[listing.stem]
        for line in _lines(listing):
            if not line.strip():
                continue
            question, tab, answer = line.rpartition("\t")
            if not tab:
                raise DataError(
                    f"{listing} has a line that is not question, tab, answer", got=line[:80]
                )
            image = picture.relative_to(folder.parent).as_posix()
            yield {
                "category": folder.name,
                "question_id": f"{folder.name}/{picture.name}",
                "image": image,
                "question": question,
                "answer": answer,
            }


def prompt(question: Question) -> str:
    return f"{question.text.replace(_ASKS, '').strip()}\n{SHORT_ANSWER}"


def parse_answer(answer: str) -> str:
    """MME's own parsing: "yes" if the first four characters contain it, else "no" if they contain
    that, else "other".
    """
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(question: Question, answer: str) -> float:
    return float(parse_answer(answer) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """A unit is an image. Columns for each category: questions answered correctly, questions,
    images with both correct, images.
    """
    pairs: dict[str, list[ScoredAnswer]] = {}
    for one in marked:
        pairs.setdefault(one.question.group, []).append(one)
    rows = np.zeros((len(pairs), 4 * len(MME_CATEGORIES)))
    for row, pair in zip(rows, pairs.values(), strict=True):
        at = 4 * MME_CATEGORIES.index(pair[0].question.kind)
        right = sum(one.score for one in pair)
        row[at : at + 4] = right, len(pair), right == len(pair), 1
    return rows


def metrics(sums: Array) -> dict[str, Array]:
    """Perception and cognition over the categories that were evaluated; each category's score;
    overall accuracy and accuracy+.
    """
    there = [i for i in range(len(MME_CATEGORIES)) if sums[0, 4 * i + 1]]
    of = {
        MME_CATEGORIES[i]: (
            100
            * (
                mean(sums[:, 4 * i], sums[:, 4 * i + 1])
                + mean(sums[:, 4 * i + 2], sums[:, 4 * i + 3])
            )
        )
        for i in there
    }
    found: dict[str, Array] = {}
    for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if asked := [of[kind] for kind in kinds if kind in of]:
            found[name] = np.sum(asked, axis=0)
    total = sums.reshape(len(sums), len(MME_CATEGORIES), 4).sum(1)
    return (
        found
        | of
        | {
            "accuracy": mean(total[:, 0], total[:, 1]),
            "accuracy_plus": mean(total[:, 2], total[:, 3]),
        }
    )


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_unread(
        marked,
        lambda one: parse_answer(one.answer) != "other",
        "begin with neither yes nor no, by MME's reading",
    )


TASK = Task("mme", "MME", load, score, aggregate, metrics, prompt=prompt, caveats=caveats)
