"""MME (Fu et al., 2023): two questions about each picture, one to be answered yes and one no; ten kinds of perception, four of cognition.

The folder MME_Benchmark_release_version, in which each category is a folder of pictures with a .txt of the same name (question, tab,
answer), or of `images` and `questions_answers_YN`; files CATEGORY.txt of picture, question, answer; or lmms-lab/MME.

A category's score is its accuracy plus its "accuracy+", the share of pictures both of whose questions are answered rightly, each in
percent; perception (at most 2,000) and cognition (800) are sums of these (calculation.py of MME's eval_tool).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..reading import Row, Usual, picture_name, read, rows_of, some, text_of, unpacking
from ..task import Array, Marked, Task, mean
from .wording import SHORT

HUB = Usual("test")
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION
_ASKS = "Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg", ".bmp", ".webp")


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    times: Counter[str] = Counter()
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            for row in _rows(source):
                kind, group = text_of(row, "category", of=source), text_of(row, "question_id", of=source)
                if kind not in CATEGORIES:
                    raise DataError(f"{source}: unknown category of MME", got=kind, wanted=", ".join(CATEGORIES))
                label = text_of(row, "answer", of=source).strip().rstrip(".").lower()
                if label not in ("yes", "no"):
                    raise DataError(f"{source}: the answer to a question about {group} is neither yes nor no", got=label)
                times[group] += 1
                number = group if times[group] == 1 else f"{group}#{times[group]}"
                image = picture_name(row, unpacked, source)
                questions.append(Question(number, image, text_of(row, "question", of=source), (label,), kind, group=group))
    odd = [group for group, n in times.items() if n != 2]
    if odd:
        raise DataError(f"MME has two questions about each picture; {len(odd)} have another number", got=f"{times[odd[0]]} about {odd[0]}")
    return some(questions, sources)


def _rows(source: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        yield from _listing(path)
    elif path.is_dir() and any(any(path.glob(listing)) for listing in ("*/*.txt", "*/questions_answers_YN/*.txt")):
        for folder in sorted(one for one in path.iterdir() if one.is_dir() and one.name in CATEGORIES):
            yield from _category(folder)
    else:
        yield from rows_of(read(source, HUB), source)


def _listing(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        cells = line.rstrip("\n").split("\t")
        if len(cells) < 3:
            raise DataError(f"{path}, line {number} is not picture, question, answer", got=f"{len(cells)} cells between tabs")
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
    """Questions of a category's folder; pictures are named as LLaVA names them, by the category and their file."""
    apart = (folder / "images").is_dir()
    pictures = {one.stem: one for one in sorted((folder / "images" if apart else folder).iterdir()) if one.suffix.lower() in _PICTURES}
    for listing in sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt")):
        if listing.stem not in pictures:
            raise DataError(f"{listing} has no picture", wanted=f"{listing.stem}.jpg or .png")
        picture = pictures[listing.stem]
        for line in _lines(listing):
            if not line.strip():
                continue
            question, tab, answer = line.rpartition("\t")
            if not tab:
                raise DataError(f"{listing} has a line that is not question, tab, answer", got=line[:80])
            image = picture.relative_to(folder.parent).as_posix()
            yield {
                "category": folder.name,
                "question_id": f"{folder.name}/{picture.name}",
                "image": image,
                "question": question,
                "answer": answer,
            }


def put(question: Question) -> str:
    return f"{question.text.replace(_ASKS, '').strip()}\n{SHORT}"


def said(answer: str) -> str:
    """MME's reading: "yes" if the first four characters hold it, else "no" if they hold that, else "other"."""
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def credit(question: Question, answer: str) -> float:
    return float(said(answer) == question.answers[0])


def tally(marked: Sequence[Marked]) -> Array:
    """A unit is a picture. Columns for each category: questions right, questions, pictures with both right, pictures."""
    pairs: dict[str, list[Marked]] = {}
    for one in marked:
        pairs.setdefault(one.question.group, []).append(one)
    rows = np.zeros((len(pairs), 4 * len(CATEGORIES)))
    for row, pair in zip(rows, pairs.values(), strict=True):
        at = 4 * CATEGORIES.index(pair[0].question.kind)
        right = sum(one.credit for one in pair)
        row[at : at + 4] = right, len(pair), right == len(pair), 1
    return rows


def figures(sums: Array) -> dict[str, Array]:
    """Perception and cognition, of the categories that were asked about; each category's score; accuracy and accuracy+ over all."""
    there = [i for i in range(len(CATEGORIES)) if sums[0, 4 * i + 1]]
    of = {CATEGORIES[i]: 100 * (mean(sums[:, 4 * i], sums[:, 4 * i + 1]) + mean(sums[:, 4 * i + 2], sums[:, 4 * i + 3])) for i in there}
    found: dict[str, Array] = {}
    for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if asked := [of[kind] for kind in kinds if kind in of]:
            found[name] = np.sum(asked, axis=0)
    total = sums.reshape(len(sums), len(CATEGORIES), 4).sum(1)
    return found | of | {"accuracy": mean(total[:, 0], total[:, 1]), "accuracy_plus": mean(total[:, 2], total[:, 3])}


MME = Task("mme", "MME", load, credit, tally, figures, put=put)
