"""Answers in other languages and scripts: read where they are decisive, counted where not; and
English is scored as it always was.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phisense.evaluation.answer_metrics import (
    is_correct,
    normalize_answer,
    normalize_any_script,
    normalize_official,
    parse_letter,
    textvqa_accuracy,
    vqa_accuracy,
)
from phisense.evaluation.caption_metrics import tokenize_caption
from phisense.evaluation.yes_no import parse_yes_no
from phisense.unicode_scripts import word_count

YES = """Ja|Ja.|Oui|Oui, il y a un chien|Да|Да, есть.|Sí|sí, hay un perro|Si.|Si, hay|はい|はい、います。|是|是的
是的，图中有一只狗。|有|有。|图中有一只狗。|네|예, 있습니다|نعم|हाँ|Evet|có|Ya|Ja, det finns en hund|Tak|Sim
Sim, há um cachorro|Ja, er is een hond|ใช่|มี|มีหมา|Igen|Kyllä|Так|Ναι|כן|犬がいます|对|嗯|我看到一只狗|我可以看到一只狗"""
NO = """Nein|Nein.|Non|Non, il n'y a pas de chien|нет|Нет, собаки нет.|No lo es|No hay perro|いいえ|いいえ、いません。|不是
不是。|没有|图中没有狗。|否|这张图片里没有狗|犬はいません。|아니요|아니요, 없습니다.|لا|لا، لا يوجد كلب|नहीं
नहीं, कोई कुत्ता नहीं है।|hayır|Hayır, yok.|không|Không có|Tidak|Tidak ada anjing|nej|Nej, det finns ingen hund|Nie
Nie, nie ma psa|Não|Não, não há|Nee|Nee, er is geen hond|ไม่
ไม่มี|Nem|Ei|не|Ні|Όχι|לא|Kein Hund|Aucun chien|無|没|ない|我没有看到狗。|看不到狗"""
NEITHER = """对不起，我无法回答|无法确定|不知道|不确定。|是否|有没有狗？|有吗？|是或否|也许|是的，没有狗|No lo sé|No sé.
Je ne sais pas|Ich weiß nicht|Não sei|не знаю|わかりません|모르겠습니다|Há um cachorro no sofá|Es gibt einen Hund
Ich sehe einen Hund im Bild|Il y a un chien sur le canapé|El perro está en la mesa|Ja oder nein|oui ou non|Ja nie wiem
Hund|色は赤です|한국어|Bir köpek görüyorum|Er is een hond|Det finns en hund|Jest pies|Es sind keine Hunde, glaube ich"""
NO_ANSWERS = """asdf qwer zxcv|lkjsdf|<html><body>502 Bad Gateway</body></html>|Error: timeout|Failed to obtain answer via API.
Internal Server Error|An error occurred while processing your request.|Rate limit exceeded|I cannot
I cannot assist with that.|I'm sorry.|I apologize, but I must decline.|12345|...|Is there a dog in the image?
Lorem ipsum dolor sit amet|null|{"answer": 3}|C|B. ring|I won't answer that.|As an AI language model|Request timed out
undefined|Traceback (most recent call last):|The model is overloaded, please try again later.
You exceeded your current quota|Service temporarily unavailable|👍?|？？"""


@pytest.mark.parametrize(
    ("table", "means"), [(YES, "yes"), (NO, "no"), (NEITHER, "other"), (NO_ANSWERS, "other")]
)
def test_a_table_of_answers(table: str, means: str) -> None:
    """Each is an answer to "Is there a dog in the image?"."""
    wrong = {
        text: said
        for text in re.split(r"[|\n]", table)
        if (said := parse_yes_no(text, "Is there a dog in the image?")) != means
    }
    assert wrong == {}


def test_every_english_phrasing_is_read_as_before_whatever_was_asked() -> None:
    """The measured list, with the question and without; its three exceptions are those of
    test_answers.py.
    """
    lines = [
        json.loads(line)
        for line in (Path(__file__).parent / "phrasings.jsonl").read_text().splitlines()
    ]
    for asked in ("", "Is there a dog in the image?", "Gibt es einen Hund im Bild?"):
        assert sum(parse_yes_no(line["answer"], asked) != line["means"] for line in lines) == 3


def test_a_repeated_question_is_no_part_of_the_answer() -> None:
    asked = "Is there a dog in the image?"
    assert [
        parse_yes_no(f"{asked} {one}", asked) for one in ("Yes", "No.", "There is none.", "")
    ] == [
        "yes",
        "no",
        "no",
        "other",
    ]


AFFIRMING = """没错|不错|没错，有|不错，图中有一只狗|无疑有一只狗|毫无疑问，有一只狗|不仅有狗，还有猫
No hay duda, hay un perro.|No hay duda.|No solo hay un perro.|Sin duda.|Não só um cachorro.|Não há dúvida.
Sem dúvida, há um cachorro no sofá.|Нет сомнений, собака есть.|Не только собака.|Без сомнения
いないことはない。|間違いなく犬がいます|間違いない|Non c'è dubbio, c'è un cane|Non solo un cane
Sans aucun doute|Pas seulement un chien|Aucun doute|Kein Zweifel, da ist ein Hund.|Nicht nur ein Hund
Zweifellos|Geen twijfel|Niet alleen een hond|Nie tylko pies|Bez wątpienia|Ingen tvekan|Inte bara en hund
Ikke bare en hund|Tidak hanya anjing|Không chỉ có chó|لا شك|אין ספק|틀림없이 개가 있습니다|Certo|Natürlich
Bien sûr, il y a un chien|Конечно, есть|Sim, sem dúvida|Ja, ohne Zweifel|Sim, há um cachorro no sofá
对，没错"""
DENYING = """Certo che no|Bien sûr que non|Efectivamente no hay|Ciertamente no|oczywiście że nie|Natürlich nicht
Claro que no|Конечно нет|Por supuesto que no|Natuurlijk niet|Tentu tidak|Sin duda no hay perro
Нет сомнений: нет|无疑没有狗|没错，没有狗|不错，图中没有狗|Certamente não"""
OF_TWO_MINDS = """Sí, pero no hay ningún perro|Ja, aber da ist kein Hund|Да, но собаки нет|是的，但是图中没有狗
Oui, mais il n'y a aucun chien|Sim, mas não há cachorro|はい、犬はいません|네, 개가 없습니다
Tak, ale nie ma psa|Ja, men det finns ingen hund|Certo, ma non c'è un cane, no"""


@pytest.mark.parametrize(
    ("table", "means"), [(AFFIRMING, "yes"), (DENYING, "no"), (OF_TWO_MINDS, "other")]
)
def test_decisive_words_are_read_in_their_sense(table: str, means: str) -> None:
    """A "no" that affirms, a "surely" that stresses a no, and a yes with a no behind it."""
    wrong = {
        text: said
        for text in re.split(r"[|\n]", table)
        if (said := parse_yes_no(text, DOG)) != means
    }
    assert wrong == {}


DOG = "Is there a dog in the image?"
AROUND = [
    "<b>{}</b>",
    "<s>{}</s>",
    "<p class='a'>{}</p>",
    "<i><b>{}</b></i>",
    "[{}]",
    "{{{}}}",
    "({})",
    '{{"answer": "{}"}}',
    '["{}"]',
]
AROUND += [
    '```json\n{{"answer": "{}", "score": 1}}\n```',
    "[INST] a dog or no dog? [/INST] {}",
    "Is there a dog? {}",
    "The dog? {}",
    "Yes or no? {}",
]


@pytest.mark.parametrize("form", AROUND)
def test_what_is_around_an_answer_favours_neither(form: str) -> None:
    read = [
        parse_yes_no(form.format(one), DOG)
        for one in ("Yes", "no", "YES.", "No, there is none.", "Perhaps")
    ]
    assert read == ["yes", "no", "yes", "no", "other"]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "yes", "b": "no"}',
        "{}",
        "[]",
        '{"answer": 3}',
        "<html><p>Yes</p></html>",
        "Yes or no?",
        "The dog?",
    ],
)
def test_what_holds_no_single_answer_is_none(text: str) -> None:
    assert parse_yes_no(text, DOG) == "other"


PLACES = [
    "Los Angeles",
    "San Diego",
    "Las Vegas",
    "El Paso",
    "Rio de Janeiro",
    "La Paz",
    "Des Moines",
    "Den Haag",
]
IN_PLACES = [
    "Children play near a dog in {}.",
    "Dog in {}",
    "A dog, {}",
    "I see a dog in {}",
    'The dog sits below a sign "{}".',
]
PLAIN = """Sorry, there's a dog.|It failed to rain; a dog is outside.|An error message is shown on the laptop.
Toddler clutching plush dog|There's an AI model poster next to the dog.
Silver kettle, copper pans, and dog|Batter swinging|A dog at an API conference|The sign says "Die Zeit".
The dog refuses to move.|The dog failed to jump|A dog beside a service vehicle|A null sign beside the dog"""


def test_plain_english_affirms_whatever_names_and_words_are_in_it() -> None:
    said = [form.format(place) for form in IN_PLACES for place in PLACES] + re.split(
        r"[|\n]", PLAIN
    )
    assert {text for text in said if parse_yes_no(text, DOG) != "yes"} == set()
    assert parse_yes_no("Children play near a cat in Los Angeles; no dog.", DOG) == "no"


@pytest.mark.parametrize(
    "text",
    [
        "cachorro no sofá",
        "El perro en la mesa",
        "A kutya a képen van",
        "Un chien a la plage",
        "Hund im Bild",
    ],
)
def test_a_word_that_two_languages_have_makes_no_english(text: str) -> None:
    assert parse_yes_no(text, DOG) == "other"


def captions(fixtures: Path) -> list[str]:
    instruct = [
        json.loads(line)["captions"]
        for line in (fixtures / "instruct" / "captions.jsonl").read_text().splitlines()
    ]
    photographs = [
        json.loads(line)["answer"]
        for line in (fixtures / "photographs" / "captions.jsonl").read_text().splitlines()
    ]
    aligned = [
        [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        for row in aligned_rows(fixtures)
    ]
    return sorted({caption for some in (*instruct, *photographs, *aligned) for caption in some})


def aligned_rows(fixtures: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((fixtures / "photographs" / "align.json").read_text())
    return rows


def test_every_english_caption_is_read(fixtures: Path) -> None:
    """Asked about any word that it has, and about none of them: before other languages were read,
    all of these were yes or no.
    """
    told = captions(fixtures)
    assert len(told) > 1000
    unread = set()
    for caption in told:
        names = [
            word for word in re.findall(r"[a-z]{3,}", caption.lower()) if word not in ("the", "and")
        ]
        unread |= {
            (caption, name)
            for name in names
            if parse_yes_no(caption, f"Is there a {name} in the image?") == "other"
        }
    assert unread == set()
    assert sum(parse_yes_no(caption, DOG) == "other" for caption in told) < len(told) / 100
    cut = [
        parse_yes_no(f"I'm sorry, but I cannot see whether {caption.lower()}", DOG)
        for caption in told[:200]
    ]
    assert set(cut) == {"other"}, "the control: a refusal is none, whatever it names"


def test_a_word_of_an_english_question_is_english() -> None:
    assert parse_yes_no("Chihuahuas", "Is there a chihuahua in the image?") == "yes"
    assert parse_yes_no("Chihuahuas") == "other"
    assert parse_yes_no("Ein Hund im Bild", "Ist ein Hund im Bild?") == "other"


LETTERS_ = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789"


def ascii_texts(count: int) -> list[str]:
    draw = random.Random(5)
    stems = [
        "two",
        "none",
        "a dog",
        "don't",
        "dont",
        "10:30 a.m.",
        "1,000",
        "it's",
        "t-shirt",
        "u.s.",
        "yes",
        "No.",
        "the",
        "let's",
        "?",
        "&amp;",
    ]
    made = [
        draw.choice(stems)
        + draw.choice(["", ".", "!", " ", "\n", ", no"])
        + draw.choice([*stems, ""])
        for _ in range(count // 2)
    ]
    return made + [
        "".join(draw.choice(LETTERS_ + " .,;:!?'\"-()/&$%@#") for _ in range(draw.randint(0, 20)))
        for _ in range(count // 2)
    ]


def test_ascii_is_compared_by_the_official_rule_alone() -> None:
    for text in ascii_texts(4000):
        assert normalize_any_script(text) == normalize_official(text) == normalize_answer(text)


def test_the_official_figures_are_the_old_ones_on_ascii() -> None:
    """Written out as they were before other scripts were thought of."""

    def agreement(said: str, people: list[str]) -> float:
        same = [one == said for one in people]
        return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)

    def line(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    def vqa(said: str, people: list[str]) -> float:
        plain = [line(one) for one in people]
        return (
            agreement(line(said), plain)
            if len(set(plain)) == 1
            else agreement(normalize_answer(said), [normalize_answer(one) for one in plain])
        )

    def textvqa(said: str, people: list[str]) -> float:
        def form(text: str) -> str:
            return normalize_answer(
                text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
            )

        return agreement(form(said), [form(one) for one in people])

    draw, texts = random.Random(6), ascii_texts(400)
    for _ in range(1500):
        few = draw.sample(texts, draw.randint(1, 3))
        people = [draw.choice(few) for _ in range(10)]
        said = draw.choice([*few, draw.choice(texts)])
        assert vqa_accuracy(said, people) == vqa(said, people)
        assert textvqa_accuracy(said, people) == textvqa(said, people)


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("红色。", "红色"), ("红色，", "红色"), ("「红色」", "红色"), ("ＲＥＤ", "red"),
        ("ＲＥＤ！", "red"), ("КОШКА", "кошка"), ("Кошка.", "кошка"), ("caf\u0065\u0301", "café"),
        ("¿Rojo?", "rojo"), ("ΣΚΥΛΟΣ", "σκυλος"), ("STRASSE", "straße"), ("قطة؟", "قطة"),
        ("١٢", "12"), ("３", "3"), ("लाल।", "लाल"), ("红色 星星", "红色星星"), ("“red”", "red"),
        ("\ufeffred\u200b", "red"), ("3 只", "3只"), ("แมว", "แมว"), ("ﾈｺ", "ネコ"),
    ],
)  # fmt: skip
def test_one_answer_in_two_forms(said: str, gold: str) -> None:
    assert is_correct(said, [gold])


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("cafe", "café"),
        ("红", "红色"),
        ("不是", "是"),
        ("кот", "кит"),
        ("1", "１２"),
        ("", "?"),
        ("", "the"),
        ("!", "?"),
    ],
)
def test_two_answers_stay_two(said: str, gold: str) -> None:
    assert not is_correct(said, [gold])


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("10^2", "10²"),
        ("m²", "㎡"),
        ("1½", "1 1/2"),
        ("½", "1/2"),
        ("5㎏", "5kg"),
        ("①", "①"),
        ("ﬁsh", "fish"),
    ],
)
def test_compatibility_forms_that_are_one(said: str, gold: str) -> None:
    assert is_correct(said, [gold])


@pytest.mark.parametrize("gold", ["10²", "x³", "10¹²", "10⁻³", "①", "①②", "1½", "㎡", "㎥"])
def test_a_number_of_another_form_stays_another_number(gold: str) -> None:
    assert is_correct(gold, [gold])
    plain = unicodedata.normalize("NFKC", gold).replace("\u2044", "/")
    assert normalize_any_script(plain) != normalize_any_script(gold), (
        "the control: compatibility forms alone would make them equal"
    )


@pytest.mark.parametrize("accuracy", [vqa_accuracy, textvqa_accuracy])
@pytest.mark.parametrize("gold", ["a", "The", "?", "...", "red", "红", "10²"])
def test_of_few_people_any_is_right_whatever_normalisation_leaves_of_it(
    accuracy: Callable[[str, list[str]], float], gold: str
) -> None:
    assert accuracy(gold, [gold]) == accuracy(gold, ["blue", gold]) == 1.0
    assert accuracy("", [gold]) == accuracy("an", [gold]) == accuracy("!", [gold]) == 0.0


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("一颗红色的星星，OK。", "一 颗 红 色 的 星 星 ok"),
        ("犬が2匹います。", "犬 が 2 匹 い ま す"),
        ("हिन्दी एक भाषा है।", "हिन्दी एक भाषा है"),
        ("ลูกแมวนั่ง", "ลู ก แ ม ว นั่ ง"),
        ("Él está aquí, ¿no?", "él está aquí no"),
        ("кошка, сидит.", "кошка сидит"),
        ("A café – nice…", "a café nice"),
        ("개가 있습니다.", "개가 있습니다"),
    ],
)
def test_words_of_other_scripts(text: str, split: str) -> None:
    assert tokenize_caption(text) == split.split()


def test_long_texts_are_long_in_every_script() -> None:
    assert word_count("左上角有一颗很大的红色星星，右下角有一个很小的蓝色圆环，中间什么也没有") > 12
    assert word_count("右下角有一个蓝色圆环") <= 12
    assert word_count("แมวสีดำตัวใหญ่นั่งอยู่บนโต๊ะไม้ข้างหน้าต่างบานใหญ่และมองออกไปข้างนอกบ้าน") > 12
    assert word_count("a red star in the corner") == 6


@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        ("答案是B", "B"),
        ("选B", "B"),
        ("选项 A。", "A"),
        ("Ｂ", "B"),
        ("（Ｂ）", "B"),
        ("正确答案：A", "A"),
        ("答えはBです", "B"),
        ("猫", "A"),
        ("这是一只狗。", "B"),
        ("A或B", None),
        ("不知道", None),
    ],
)
def test_letters_in_other_scripts(answer: str, ours: str | None) -> None:
    assert parse_letter(answer, ("猫", "狗")) == ours


def test_a_long_sentence_is_read_in_time() -> None:
    """Words may not be split at every letter: 2 to the power of the letters took for ever."""
    assert (
        parse_yes_no(
            "There is a brown dog sitting on the sofa near the window of the living room " * 20
        )
        == "yes"
    )
