"""Writes the two reference pages from the code: every key of a recipe (pydantic), every verb with
its options (typer). `make docs` runs it; a test asserts that what it would write is what lies here.
"""

from __future__ import annotations

import html
import inspect
import sys
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.models import ArgumentInfo

HERE = Path(__file__).parent
#: What a part of a type is called by one who writes YAML.
WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    NoneType: "null",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def recipe_keys() -> str:
    """The page of recipe keys: a table for each section, in the order in which a recipe is
    written.
    """
    from phisense.recipe import Recipe

    said = [
        "# Recipe keys",
        (
            "Written by `make docs` from `src/phisense/recipe/`; a test asserts that it is"
            " current. [Recipes](recipes.md) says what the keys are for."
        ),
        (
            "A key that does not exist, a wrong type and a value out of its range are refused, with"
            " the nearest key or the range in the message. `--set train.instruct.epochs=2` changes"
            " one key for one command."
        ),
    ]
    for heading, section, note in _sections(Recipe, ""):
        said += [
            f"## {heading}",
            *([note] if note else []),
            _table(["key", "value", "default", "what it is"], _key_rows(section)),
        ]
    return "\n\n".join(said) + "\n"


def _sections(
    section: type[BaseModel], path: str, note: str = ""
) -> list[tuple[str, type[BaseModel], str]]:
    """A section and those within it. Stages are alike: the first is written out, the others point
    to it.
    """
    found = [(f"`{path}`" if path else "At the top", section, note)]
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None or (path, name) == ("train", "align"):
            continue
        at = f"{path}.{name}".lstrip(".")
        if at == "train.instruct":
            found += _sections(
                inner,
                at,
                "`train.align` has the same keys. It may be left out: then the projector is not"
                " aligned first.",
            )
        elif at == "train.further":
            found += _sections(
                inner, f"{at}.<name>", "The keys of `train.instruct`, and its own data."
            )
        elif not at.startswith("data."):  # a data set is written as a path, or with these two keys
            found += _sections(inner, at)
    return found


def _key_rows(section: type[BaseModel]) -> list[list[str]]:
    from phisense.recipe import OneOf

    inherited = (
        set(section.__mro__[1].model_fields) if section.__name__ == "FurtherStage" else set()
    )
    rows = []
    for name, field in section.model_fields.items():
        if name in inherited:
            continue
        inner = _section_in(field.annotation)
        names = next((m.table for m in field.metadata if isinstance(m, OneOf)), None)
        value = (
            "section"
            if inner is not None and get_origin(field.annotation) is not tuple
            else _type(Literal[tuple(names)] if names else field.annotation)
        )
        bounds = [
            f"{sign} {getattr(m, bound):g}"
            for m in field.metadata
            for bound, sign in BOUNDS.items()
            if hasattr(m, bound)
        ]
        rows.append(
            [
                f"`{name}`",
                ", ".join([value, *bounds]),
                _default(field.default),
                field.description or ("" if inner is None else "see below"),
            ]
        )
    return rows


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, directly, or by name or as one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (inner for part in get_args(annotation) if (inner := _section_in(part)) is not None), None
    )


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is tuple:
        return f"list of: {_type(parts[0])}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "path, or `{path, weight}`" if annotation.__name__ == "DataSet" else "section"
    return WORDS[annotation]


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "must be given"
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, (str, Path)):
        return f"`{default}`"
    written = yaml.safe_dump(
        list(default) if isinstance(default, tuple) else default, default_flow_style=True
    )
    return f"`{written.replace('...', '').strip()}`"


def commands() -> str:
    """The page of verbs: what `--help` says of each, read from the functions that typer reads."""
    from phisense.cli import app

    said = [
        "# Commands",
        (
            "Written by `make docs` from the command line's own functions; a test asserts that it"
            " is current. `phisense VERB --help` says the same."
        ),
        (
            "Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted, 143 terminated. "
            "`phisense --debug VERB` shows the traceback of an error."
        ),
    ]
    for command in app.registered_commands:
        verb = command.callback
        assert verb is not None
        name = command.name or verb.__name__
        hints = get_type_hints(verb, include_extras=True)
        rows, usage = [], ["phisense", name]
        for parameter in inspect.signature(verb).parameters.values():
            if hints[parameter.name] is typer.Context:
                continue
            kind, about = get_args(hints[parameter.name])[:2]
            required = parameter.default is inspect.Parameter.empty
            if isinstance(about, ArgumentInfo):
                usage.append(parameter.name.upper() if required else f"[{parameter.name.upper()}]")
                called = f"`{parameter.name.upper()}`"
            else:
                named = [
                    word
                    for word in (about.default, *(about.param_decls or ()))
                    if isinstance(word, str)
                ]  # typer keeps the first name there
                called = ", ".join(
                    f"`{word}`" for word in named or (f"--{parameter.name.replace('_', '-')}",)
                )
            switch = isinstance(parameter.default, bool)
            default = (
                "must be given"
                if required
                else ""
                if switch or parameter.default is None
                else _default(parameter.default)
            )
            rows.append([called, _kind(kind, about), default, about.help or ""])
        paragraphs = inspect.cleandoc(verb.__doc__ or "").split("\n\n")
        said += [
            f"## {name}",
            f"`{' '.join(usage)} [OPTIONS]`",
            *(" ".join(paragraph.split()) for paragraph in paragraphs),
        ]
        said.append(_table(["argument or option", "value", "default", "what it is"], rows))
    return "\n\n".join(said) + "\n"


def _kind(kind: Any, about: Any) -> str:
    """What an option takes: a kind and its bounds; nothing for a switch."""
    given = [part for part in get_args(kind) or (kind,) if part is not NoneType]
    repeatable = get_origin(given[0]) is list or get_origin(kind) is list
    one = get_args(given[0])[0] if get_origin(given[0]) is list else given[0]
    if one is bool:
        return ""
    shown = (
        " or ".join(f"`{choice}`" for choice in get_args(one))
        if get_origin(one) is Literal
        else " or ".join(f"`{choice.value}`" for choice in one)
        if issubclass(one, Enum)
        else f"`{about.metavar}`"
        if about.metavar
        else WORDS[one]
    )
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in (("≥", about.min), ("≤", about.max))
        if bound is not None
    ]
    return ", ".join([shown, *bounds, *["repeatable"] * repeatable])


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_cell(" ".join(cell.split())) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def _cell(text: str) -> str:
    """Code stays code, other text shows its signs; a bar would end the cell, and only HTML writes
    one alike on GitHub and on the site.
    """
    parts = text.split("`")
    for i, part in enumerate(parts):
        escaped = html.escape(part, quote=False).replace("|", "&#124;")
        parts[i] = (
            escaped if i % 2 == 0 else f"<code>{escaped}</code>" if "|" in part else f"`{part}`"
        )
    return "".join(parts)


PAGES = {"reference-recipe.md": recipe_keys, "reference-commands.md": commands}


def main() -> None:
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
