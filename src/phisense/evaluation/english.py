"""Decide whether a sentence is recognizably English, by the vocabulary of short answers about
images.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise


def listed(text: str) -> list[str]:
    """The words of a table; an underscore stands for a space."""
    return [word.replace("_", " ") for word in text.split()]


# English words that none of the other languages here has, and words of those languages that English
# lacks.
_ENGLISH = set(
    listed("""
    the is are there it this that these those and of with not isn't aren't doesn't don't was
    were has have had yes its it's there's i i'm you we they he she at by from can to be being
    been seen see show shows shown visible image picture photo appears seems looks
""")
)
_ELSEWHERE = set(
    listed("""
    der das den dem ein eine einen einem einer ist sind und nicht kein keine keinen auf im bild
    ich sehe gibt es zu wird mit auch le les un une est dans sur pas je ne qui avec sont du des
    au cette il elle y el los las una hay está están esta este esto en del que con por se lo
    como imagen foto sí há não na nos nas um uma em do ao com são tem você uno gli che nel nella
    sulla c'è ci sono di della immagine het een niet geen er zijn op de ik zie wel afbeelding
    jest nie się są w jeden obrazie zdjęciu to det ett inte och är på som finns bilden ikke og
    av bildet billedet bir var yok görüntüde resimde değil ve bu ada tidak seekor dalam gambar
    ini yang sebuah on kuvassa ei egy nincs a képen není obrázku
""")
) - {"on", "to", "a", "in", "do", "is", "at", "den", "of", "so", "as", "se", "or", "var", "y"}
#: Vocabulary of short English answers about images, in addition to `_ENGLISH` and the words of the
#: question.
_KNOWN = _ENGLISH | set(
    listed("""
    a an in on no one two three four five six seven eight nine ten several many some any few
    both each other another all most least only also just very more but or as near next beside
    behind under over above below front back left right top bottom side corner middle center
    background foreground inside outside between around across along through into out up down
    off here where which who what because so than yes response clearly likely probably obviously
    obvious evident evidently present presence possible indeed surely quite fairly certain sure
    exactly positive true correct okay ok does do did made make look looking appear appearing
    sit sits sitting stand stands standing lie lies lying walk walks walking run runs running
    ride rides riding hold holds holding wear wears wearing eat eats eating play plays playing
    fly flying drive driving park parked place placed hang hanging lean leaning rest resting
    sleep sleeping swim swimming jump jumping catch catching throw throwing watch watching
    partially partly hidden fully entirely contain contains containing include includes
    including feature features depict depicts depicting display displays displayed consist
    consists surrounded covered filled using use used small large big little tall short long old
    young new tiny huge black white red green blue brown yellow orange pink purple gray grey
    dark light colorful bright wooden metal glass striped spotted man men woman women people
    person boy girl child children kid kids baby group crowd player animal animals pet puppy
    puppies kitten thing object objects item items food fruit vegetable vehicle building house
    street road sidewalk tree trees grass field beach water river lake ocean sea sand snow sky
    cloud clouds sun wall floor window door room kitchen bathroom bedroom living table rug
    carpet sofa leash collar shirt hat sunglasses glasses helmet jacket shoes box bag plate
    shelf counter desk lamp mirror curtain blanket pillow sign pole fence bicycle bike car
    motorcycle airplane plane bus train truck boat traffic fire hydrant stop parking meter bench
    bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie
    suitcase frisbee skis ski snowboard sports ball kite baseball bat glove skateboard surfboard
    tennis racket bottle wine cup fork knife spoon bowl banana apple sandwich broccoli carrot
    hot pizza donut cake chair couch potted plant bed dining toilet tv television laptop mouse
    remote keyboard cell phone microwave oven toaster sink refrigerator book clock vase scissors
    teddy hair drier toothbrush fox wolf fireplace think believe answer question your my his her
    their our
""")
)
#: English words that no other language here has and that any sentence may contain; then those of
#: any question, whatever its subject; then those that follow an "a" in other languages as well.
_ENGLISH_ALONE = set(
    listed(
        "the with and while near behind beside his her their its some during from into for two"
        " three of"
    )
)
_ASKING = {
    "is",
    "are",
    "there",
    "a",
    "an",
    "any",
    "in",
    "on",
    "of",
    "the",
    "this",
    "image",
    "picture",
    "photo",
    "see",
    "you",
    "do",
    "can",
    "no",
}
_FEW_LETTERS = {"no", "on", "in", "a", "an", "as", "or", "so", "to", "do", "is", "at"}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def is_english(sentence: str, asked: str = "") -> bool:
    """Whether a sentence is English.

    It must not be foreign, and must name a content word of the English question `asked`, have an
    English article before an English word, have two words that only English has, or consist by at
    least half of words known from short English answers or the question.
    """
    words = _WORD.findall(sentence)
    if not words or is_foreign(sentence, asked):
        return False
    stems = {_stem(word) for word in words}
    named = stems & (_stems(asked) - _ASKING)
    return (
        bool(named)
        or _has_article(words, asked)
        or len(_ENGLISH_ALONE & {*words}) > 1
        or _share(words, asked) >= 0.5
    )


def is_foreign(sentence: str, asked: str = "") -> bool:
    """Whether a sentence has more words of another language than of English. Its negation is then
    not English's "no" ("há um cão no sofá").

    A place name or a sign in an English sentence does not make it foreign: "a dog in Los Angeles"
    has an article before an English word, and with a single foreign word it suffices that half of
    the others are English ("Dog in Las Vegas").
    """
    words = _WORD.findall(sentence)
    if sum(not word.isascii() and ord(max(word)) >= 0x250 for word in words) * 2 > len(words):
        return True
    if "no" in words[1:] and not any(_known(word, asked) for word in words if word != "no"):
        return True  # "cachorro no sofá"
    others = [word for word in words if word not in _ELSEWHERE]
    foreign = len(words) - len(others)
    if foreign <= sum(word in _ENGLISH for word in words) or _has_article(words, asked):
        return False
    return foreign > 1 or not others or _share(others, asked) < 0.5


def _share(words: list[str], asked: str) -> float:
    """The share of the words that are known English words."""
    return sum(_known(word, asked) for word in words) / len(words)


def _known(word: str, asked: str) -> bool:
    return (
        word in _KNOWN
        or _stem(word) in _KNOWN
        or _stem(word) in _stems(asked)
        or (word.endswith("ing") and len(word) > 5)
    )


def _has_article(words: list[str], asked: str) -> bool:
    """Whether an English article precedes an English word; "a" alone is also a word of Hungarian
    and Portuguese ("a la mesa").
    """
    return any(
        one in ("a", "an", "the")
        and after not in _ELSEWHERE
        and after not in _FEW_LETTERS
        and _known(after, asked)
        for one, after in pairwise(words)
    )


@lru_cache(maxsize=1 << 12)
def _stems(asked: str) -> set[str]:
    words = _WORD.findall(asked.lower())
    english = sum(word in _KNOWN for word in words) * 2 >= len(words) and not is_foreign(
        asked.lower()
    )
    return {_stem(word) for word in words} if english else set()


def _stem(word: str) -> str:
    """Strip a plural s; sufficient to look words up in a list."""
    for end, instead in (("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("ies", "y")):
        if word.endswith(end):
            return word[: -len(end)] + instead
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
