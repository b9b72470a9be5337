"""Recipes that somebody wrote to hang or break their reader: every one is read, or refused in a
sentence, in bounded work.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from phisense import safe_parsing, safe_patterns
from phisense.errors import DataError, PhisenseError, RecipeError, UsageError
from phisense.recipe import MAX_NUMBER, SHIPPED, Pattern, Recipe, load_recipe, parse_recipe
from phisense.tuning import parse_range

Path_ = tuple[str | int, ...]

WORDS = r"""[ { - ? : & * # ' " | > % @ ` ! !! !< , <<: --- ... ~ = a: b &a *a &b *b {a: [b, {? \x4
\U \e null true .inf -.inf .nan 1e999 1.0e+999 0x 0x_ 0b_ 0o 08 1:30 190:20:30.15 1_000 2026-11-29
2026-13-45 0001-01-01T99:99:99 2001-12-14t21:59:43.10-05:00 !!int !!float !!bool !!binary !!set
!!omap !!timestamp !!python/name:os.system !!python/object/apply:os.system name train data"""
ODD = (
    "\n",
    "\n  ",
    "\t",
    " ",
    "\0",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\x85",
    "\ud800",
    "9" * 5000,
    "1" + ":1" * 200,
    "é",
)
PIECES = (*WORDS.split(), *ODD)


def doubling(levels: int, merge: bool = False) -> str:
    """Aliases of aliases: nine times as much on each line."""
    names = [f"a{i}" for i in range(levels)]
    lines = ["a0: &a0 {x: 1}"]
    for below, name in itertools.pairwise(names):
        nine = ", ".join([f"*{below}"] * 9)
        lines.append(f"{name}: &{name} " + (f"{{<<: [{nine}]}}" if merge else f"[{nine}]"))
    return "\n".join(lines)


BOMBS = {
    "aliases of aliases": doubling(9),
    "merges of merges": doubling(9, merge=True),
    "a list that holds itself": "a: &a [*a]",
    "a mapping that holds itself": "&a {b: *a}",
    "a key that holds itself": "&a {? *a : 1}",
    "a merge of itself": "a: &a {<<: *a}",
    "a chain of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
    ),
    "deep lists": "[" * 100_000,
    "deep closed lists": "[" * 60_000 + "]" * 60_000,
    "deep mappings": "{a: " * 50_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(500)),
    "deep dashes": "- " * 100_000,
    "deep question marks": "? " * 100_000,
    "endless digits": "a: " + "9" * 200_000,
    "endless hexadecimal digits": "a: 0x" + "f" * 200_000,
    "endless minutes": "a: 1" + ":1" * 100_000,
    "endless minutes with a point": "a: 1" + ":1" * 100_000 + ".5",
    "many keys": "".join(f"k{i}: v\n" for i in range(15_000)),
    "many values": "[" + "1," * 100_000 + "]",
    "more than is read": "#" * (safe_parsing.MAX_YAML_BYTES + 1),
}
#: PyYAML alone needs hours or all memory for these.
EXPLODE = (
    "aliases of aliases",
    "merges of merges",
    "deep lists",
    "deep closed lists",
    "deep mappings",
    "endless minutes",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_what_is_made_to_burst_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMBS[name])
    with pytest.raises(RecipeError, match="bomb.yaml (holds|is|has)") as caught:
        load_recipe(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 1000


def test_aliases_are_counted_as_what_they_stand_for_and_small_ones_are_read() -> None:
    read = safe_parsing.parse_yaml(doubling(4), "it")
    assert len(read["a3"]) == 9
    assert read["a3"][0] is not read["a3"][1]
    assert safe_parsing.parse_yaml("x: &x {a: 1}\ny: {<<: *x, b: 2}", "it") == {
        "x": {"a": 1},
        "y": {"a": 1, "b": 2},
    }
    with pytest.raises(RecipeError, match="holds too much; got more than 10,000 values"):
        safe_parsing.parse_yaml(doubling(5), "it")


@pytest.mark.slow
def test_the_control_the_bound_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_parsing, "MAX_NODES", 10**6)
    assert len(safe_parsing.parse_yaml(doubling(5), "it")["a4"]) == 9
    monkeypatch.setattr(safe_parsing, "MAX_DEPTH", 10**6)
    with pytest.raises(RecursionError):
        safe_parsing.parse_yaml("[" * 3000, "it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "has the key c twice in one section, again at line 2, column 11"),
        ("name: a\nname: b", "has the key name twice"),
        ("a: !!python/object/apply:os.system [id]", "has a tag at line 1, column 4"),
        ("a: !!timestamp 2026-13-45", "has a tag"),
        ("a: !own 1", "has a tag"),
        ('a: "\\0"', r"has a character that is no text at line 1, column 4; got '\\x00'"),
        ('a: "\\ud800"', r"got '\\ud800'"),
        ('a: "\\e[31m"', r"got '\\x1b'"),
        ('a: "\\UFFFFFFFF"', "is not YAML"),
        ("a: 0x_", "is not YAML"),
        ("{a: 1}: b", "has a key that is no text"),
        ("a: *b", "undefined alias 'b'"),
        ("a: 1\n---\nb: 1", "a single document"),
    ],
)
def test_each_oddity_is_named(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        safe_parsing.parse_yaml(text, "it")


def test_a_date_stays_a_text() -> None:
    assert safe_parsing.parse_yaml("[2026-11-29, 2026-13-45, 0001-01-01T99:99:99]", "it") == [
        "2026-11-29",
        "2026-13-45",
        "0001-01-01T99:99:99",
    ]


@pytest.mark.parametrize(
    ("encoding", "fits"),
    [
        ("utf-8", True),
        ("utf-8-sig", True),
        ("utf-16", False),
        ("utf-32", False),
        ("latin-1", False),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, fits: bool) -> None:
    text = "# größer\n" + (SHIPPED / "practice.yaml").read_text().replace(
        "../practice", str(SHIPPED.parent / "practice")
    )
    (tmp_path / "a.yaml").write_bytes(text.encode(encoding))
    if fits:
        assert load_recipe(tmp_path / "a.yaml").name == "practice"
        return
    with pytest.raises(RecipeError, match="is not UTF-8; got .*Save it as UTF-8"):
        load_recipe(tmp_path / "a.yaml")


def drawn(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(
        draw.choice(PIECES) + draw.choice(("", "", " ", "\n")) for _ in range(draw.randint(1, 25))
    )


def mutated(seed: int) -> str:
    """The practice recipe with some bytes changed, doubled or taken out."""
    draw, text = random.Random(seed), (SHIPPED / "practice.yaml").read_text()
    for _ in range(draw.randint(1, 6)):
        at, to = sorted(draw.randrange(len(text)) for _ in range(2))
        text = draw.choice(
            (
                text[:at] + draw.choice(PIECES) + text[at:],
                text[:at] + text[min(to, at + 20) :],
                text[:to] + text[at:to][:200] + text[to:],
            )
        )
    return text


def untyped(texts: Iterator[str], read: Any) -> list[str]:
    found = []
    for text in texts:
        try:
            read(text)
        except PhisenseError:
            continue
        except Exception as error:
            found.append(f"{error!r:.200} of {text!r:.100}")
    return found


def test_drawn_recipes_are_read_or_refused(tmp_path: Path) -> None:
    def read(text: str) -> None:
        path = tmp_path / "drawn.yaml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        load_recipe(path)

    assert untyped((make(seed) for make in (drawn, mutated) for seed in range(300)), read) == []


def test_the_control_pyyaml_alone_ends_in_errors_of_many_kinds() -> None:
    def read(text: str) -> None:
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(str(error)) from error

    assert len(untyped((drawn(seed) for seed in range(300)), read)) > 1
    bombs = [text for name, text in BOMBS.items() if name not in EXPLODE and len(text) < 150_000]
    assert untyped(iter(bombs), read)


# every key, by the schema itself


def keys(section: type[BaseModel], at: Path_ = ()) -> Iterator[tuple[Path_, Any, tuple[Any, ...]]]:
    """Each key of a section and of those below it: where, its annotation, and what pydantic was
    told besides.
    """
    for name, field in section.model_fields.items():
        yield (*at, name), field.annotation, tuple(field.metadata)
        yield from below(field.annotation, (*at, name))


def below(annotation: Any, at: Path_) -> Iterator[tuple[Path_, Any, tuple[Any, ...]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from keys(annotation, at)
        return
    step: Path_ = {tuple: (0,), dict: ("more",)}.get(get_origin(annotation), ())  # type: ignore[call-overload]
    for inner in get_args(annotation):
        yield from below(inner, (*at, *step))


def holds(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(
        holds(inner, kind)
        for inner in get_args(annotation)
        if get_origin(annotation) is not Annotated
    )


ALL = list(keys(Recipe))
FLOATS = [at for at, annotation, _ in ALL if holds(annotation, float)]
INTEGERS = [at for at, annotation, _ in ALL if annotation is int]
PATTERNS = [at for at, _, told in ALL if any(one in told for one in get_args(Pattern)[1:])]


def with_value(at: Path_, value: Any) -> dict[str, Any]:
    raw = yaml.safe_load((SHIPPED / "practice.yaml").read_text())
    raw["data"]["align"] = raw["data"]["instruct"] = [{"path": "a", "weight": 1.0}]
    raw["train"]["further"] = {"more": {"data": [{"path": "a", "weight": 1.0}]}}
    raw = copy.deepcopy(raw)
    here = raw
    for step, following in itertools.pairwise(at):
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = [] if isinstance(following, int) else {}
        here = here[step]
    here[at[-1]] = value
    return raw


def test_the_schema_was_gone_through() -> None:
    dotted = {".".join(map(str, at)) for at in FLOATS}
    assert {
        "train.instruct.learning_rate",
        "train.spike",
        "data.instruct.0.weight",
        "train.further.more.max_grad_norm",
    } <= dotted
    assert len(FLOATS) >= 25
    assert [".".join(map(str, at)) for at in PATTERNS] == ["train.lora.target_modules"]


@pytest.mark.parametrize("at", FLOATS, ids=lambda at: ".".join(map(str, at)))
def test_every_float_is_finite(at: Path_) -> None:
    for value in (
        math.inf,
        -math.inf,
        math.nan,
        "inf",
        "nan",
        "1e999",
        ".inf",
        1e300,
        -1e300,
        int("9" * 100),
    ):
        with pytest.raises(RecipeError, match=re.escape(str(at[-1]))):
            parse_recipe(with_value(at, value))


@pytest.mark.parametrize("at", INTEGERS, ids=lambda at: ".".join(map(str, at)))
def test_every_whole_number_is_bounded(at: Path_) -> None:
    for value in (MAX_NUMBER + 1, -MAX_NUMBER - 1, int("9" * 4000), math.inf, math.nan):
        with pytest.raises(RecipeError, match=re.escape(str(at[-1]))):
            parse_recipe(with_value(at, value))


BROKEN = (
    "[",
    "(",
    "(?P<a",
    "*a",
    "a**",
    "(?P<a>x)(?P<a>y)",
    "\\",
    "[z-a]",
    "a{2,1}",
    "(?<=a*)b",
    "x" * 2000,
)
ENDLESS = (
    "(a+)+",
    "(a*)*b",
    "(a|a)*b",
    "(a|ab)*c",
    "((a?)b?)*c",
    ".*.*.*.*.*.*x",
    "(.*a){20}",
    "(a|b|ab)+(a|b|ab)+c",
    "(?:(x+x+)+y)",
    "a?" * 40 + "a" * 40,
)
FINE = (
    r".*language_model.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
    r".*language_model.*layers\.\d+\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
    r"(model\.)?language_model\.layers\.(1[0-9]|2[0-9]|3[01])\.(self_attn\.(qkv|o)_proj|"
    r"mlp\.(gate_up|down)_proj)",
    r".*language_model.*\.[a-z_]+_proj",
)


@pytest.mark.parametrize("at", PATTERNS, ids=lambda at: ".".join(map(str, at)))
def test_every_pattern_is_compiled_when_it_is_read(at: Path_) -> None:
    for pattern in BROKEN:
        with pytest.raises(RecipeError, match=re.escape(str(at[-1]))):
            parse_recipe(with_value(at, pattern))
    for pattern in ENDLESS:
        with pytest.raises(RecipeError, match="could take for ever"):
            parse_recipe(with_value(at, pattern))
    for pattern in FINE:
        parse_recipe(with_value(at, pattern))


def test_the_control_an_endless_pattern_takes_twice_as_long_with_each_letter() -> None:
    """Counted in alternatives by the engine's own parse: what is refused has more ways than there
    are steps in a minute.
    """
    for pattern in ENDLESS:
        assert (
            safe_patterns._count_match_paths(safe_patterns._parser.parse(pattern))
            > safe_patterns.MAX_MATCH_PATHS
        )
    for pattern in FINE:
        assert (
            safe_patterns._count_match_paths(safe_patterns._parser.parse(pattern))
            <= safe_patterns.MAX_MATCH_PATHS
        )


@pytest.mark.parametrize(
    "text", ["a=1..inf", "a=-inf..1", "a=1..nan", "a=[,b", "a=!!python/name:os.system,1", "a=1,*b"]
)
def test_ranges_of_tune_are_sentences_too(text: str) -> None:
    with pytest.raises(UsageError):
        parse_range(text)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1000 + b"]" * 1000,
        b"[" * 100_000,
        b"NaN",
        b"1e999",
        b"\xff\xfe[\0",
        b"{",
        b'"\\ud800"',
        b"",
    ],
)
def test_json_is_bounded_too(data: bytes) -> None:
    with pytest.raises(DataError, match="^it is "):
        safe_parsing.parse_json(data, "it", DataError)


def test_what_is_reported_to_is_what_the_trainer_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from phisense.recipe import Integration

    assert set(get_args(Integration)) <= set(INTEGRATION_TO_CALLBACK)
    with pytest.raises(RecipeError, match="report_to"):
        parse_recipe(with_value(("train", "report_to"), ["a diary"]))
