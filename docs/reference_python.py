"""Writes the reference page of the Python interface from the signatures and docstrings of the
public names. `make docs` runs it; a test asserts that what it would write is what lies here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args

HERE = Path(__file__).parent
PAGE = "reference-python.md"
MODULE = "phisense"

#: The public names, in the order in which they are read about. A name that is missing here is an
#: error of this page.
GROUPS = {
    "Steps": ["load_recipe", "check", "encode_features", "train", "merge", "evaluate", "export"],
    "What the steps return": [
        "Recipe",
        "CheckResult",
        "FeaturesResult",
        "TrainResult",
        "MergeResult",
        "EvaluationReport",
        "ExportResult",
    ],
    "A model, a conversation, a voice": [
        "load_model",
        "Phi3WithProjector",
        "open_engine",
        "ChatSession",
        "Transcriber",
    ],
    "Events": [
        "Event",
        "OnEvent",
        "Progress",
        "Notice",
        "TrainingStep",
        "HeldOutEval",
        "StepSkipped",
        "Section",
        "Finished",
    ],
    "Errors": ["PhisenseError"],
}

#: Types that fields of the results have. They are not imported by users, who read them.
NESTED = (
    "phisense.pipeline.results.StageResult",
    "phisense.pipeline.results.TrainingVerdict",
    "phisense.pipeline.results.MergeMeasurement",
    "phisense.pipeline.results.MergeGate",
    "phisense.pipeline.results.FileAgreement",
    "phisense.evaluation.results.ConditionScores",
    "phisense.evaluation.results.ImageUse",
    "phisense.intervals.Interval",
)

#: What all names of a group have in common is said once.
INTRODUCTIONS = {
    "What the steps return": [
        "Results are frozen. `to_dict()` gives the JSON that the step writes, `from_dict(document)`"
        " reads it, and `load(folder)` reads the file of a finished step; all three raise"
        " ArtifactError for anything that is missing or of a wrong type. `extra` keeps the keys of"
        " later versions."
    ],
}
#: Methods that the introductions describe.
COMMON = ("to_dict", "from_dict", "load")


def reference() -> str:
    """The page: every public name with its signature and its docstring."""
    import phisense
    from phisense import errors

    named = [name for names in GROUPS.values() for name in names]
    missing = {*phisense.__all__} - {*named, "__version__"}
    assert not missing, f"GROUPS of {__file__} lacks {sorted(missing)}"
    said = [
        "# The Python interface",
        (
            "Written by `make docs` from the docstrings of `src/phisense/`; a test asserts that it"
            " is current. [In Python](python.md) shows how the names are used together."
        ),
        "`import phisense` imports neither torch nor numpy: each name is imported when it is first"
        " used.",
    ]
    for heading, names in GROUPS.items():
        said += [f"## {heading}", *INTRODUCTIONS.get(heading, ())]
        for name in names:
            said += _entry(name, getattr(phisense, name))
        if heading == "What the steps return":
            said.append("The types of their fields:")
            for path in NESTED:
                module, _, name = path.rpartition(".")
                said += _entry(name, getattr(import_module(module), name))
    said += markdown(errors.__doc__)
    return "\n\n".join(said) + "\n"


def _entry(name: str, it: Any) -> Iterator[str]:
    yield f"### {name}"
    if inspect.isclass(it):
        yield from _class(name, it)
    elif inspect.isfunction(it):
        yield _code(_signature(name, it))
        yield from markdown(it.__doc__)
    else:
        yield _code(f"{name} = {_alias(it)}")


def _class(name: str, it: type[Any]) -> Iterator[str]:
    if it.__bases__ != (object,) and issubclass(it, Exception):
        yield _code(_signature(name, it.__init__))
    elif dataclasses.is_dataclass(it):
        fields = [field for field in dataclasses.fields(it) if not field.name.startswith("_")]
        lines = [f"class {name}:", *(f"    {f.name}: {f.type}" for f in fields)]
        yield _code("\n".join(lines).replace("'", '"'))
    elif hasattr(it, "model_fields"):
        yield "Its keys are in [Recipe keys](reference-recipe.md)."
    else:
        yield _code(_signature(name, it.__init__))
    yield from markdown(it.__doc__)
    for member, value in _members(it):
        if isinstance(value, property):
            yield f"**`{member}`** (property)"
            yield from markdown(value.__doc__)
        else:
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            kind = " (class method)" if isinstance(value, classmethod) else ""
            yield f"**`{member}`**{kind}"
            yield _code(_signature(member, function))
            yield from markdown(function.__doc__)


def _members(it: type[Any]) -> Iterator[tuple[str, Any]]:
    """The public methods and properties with a docstring, own and inherited from this package, in
    the order in which they are written.
    """
    seen: set[str] = set()
    for owner in it.__mro__:
        if not owner.__module__.startswith(f"{MODULE}."):
            continue
        for name, value in vars(owner).items():
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if (
                not name.startswith("_")
                and name not in (*seen, *COMMON)
                and inspect.isfunction(inner)
                and inner.__doc__
                and inner.__module__.startswith(f"{MODULE}.")
            ):
                seen.add(name)
                yield name, value


def _signature(called: str, function: Any) -> str:
    """`def called(a: int, *, b: str = "x") -> int: ...`, an argument a line where it is long."""
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    words, star = [], False
    for one in kept:
        if one.kind is one.VAR_POSITIONAL:
            star = True
        if one.kind is one.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        words.append(_written(one))
    gives = signature.return_annotation
    tail = "" if gives in (None, "None", inspect.Signature.empty) else f" -> {gives}"
    line = f"def {called}({', '.join(words)}){tail}: ..."
    if len(line) <= 88:
        return line
    return "\n".join([f"def {called}(", *(f"    {word}," for word in words), f"){tail}: ..."])


def _written(parameter: inspect.Parameter) -> str:
    """A parameter as in the source. Annotations are text already, which `inspect` would quote."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = parameter.default
    if default is parameter.empty:
        given = ""
    else:
        given = f" = {default.__name__ if inspect.isfunction(default) else repr(default)}"
    line = f"{stars}{parameter.name}: {parameter.annotation}{given}"
    return line.replace("'", '"')  # as a formatter leaves it


def _alias(it: Any) -> str:
    from phisense import Event

    if isinstance(it, UnionType):
        return " | ".join(one.__name__ for one in get_args(it))
    arguments, result = get_args(it)
    assert arguments == [Event], "a type of function that this page cannot write"
    return f"Callable[[Event], {result}]"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def markdown(docstring: str | None) -> Iterator[str]:
    """Paragraphs as they are; indented and aligned lines as code blocks, in one piece."""
    block: list[str] = []
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") or not line for line in lines):
            block.append("\n".join(line[4:] for line in lines))
            continue
        if any(re.match(r"\S.*?\S {2,}\S|\S {2,}\S", line) for line in lines):
            block.append(paragraph)
            continue
        if block:
            yield "```text\n" + "\n\n".join(block) + "\n```"
            block = []
        yield " ".join(line.strip() for line in lines)
    if block:
        yield "```text\n" + "\n\n".join(block) + "\n```"


def main() -> None:
    (HERE / PAGE).write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"docs/{PAGE}\n")


if __name__ == "__main__":
    main()
