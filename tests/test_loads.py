"""Every load in src looks at what it did not find and did not use: transformers, torch and PEFT
only warn, or say nothing, and go on with random numbers.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "phisense"
#: Functions that load by name, whose report somebody has to read.
LOADERS = ("from_pretrained", "load_adapter", "load_state_dict", "set_peft_model_state_dict")
#: Where a load needs no report, and why; by module and the function that holds it.
NEEDS_NONE = {
    ("parts", "load_auto"): "configurations, tokenizers and processors hold no weights",
    ("model.unmerged", "load_with_adapter"): "LoraConfig, which holds none",
    ("importing.adapters", "open_adapter"): "LoraConfig, which holds none",
}


def loads(source: str) -> list[tuple[str, ast.Call, bool]]:
    """The function that holds each load, the call, and whether its report is read."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if name not in LOADERS:
            continue
        holder: ast.AST = node
        while holder in parents and not isinstance(holder, ast.FunctionDef):
            holder = parents[holder]
        found.append((getattr(holder, "name", "module"), node, is_read(name, node, parents[node])))
    return found


def is_read(name: str, call: ast.Call, parent: ast.AST) -> bool:
    """Strict loads raise; `from_pretrained` gives its report only if it is asked for, and what it
    gives, as PEFT's report, has to be kept.
    """
    given = {one.arg: one.value for one in call.keywords}
    if name == "load_state_dict":
        strict = given.get("strict", ast.Constant(True))
        return isinstance(strict, ast.Constant) and strict.value is True
    if name == "from_pretrained":
        asked = given.get("output_loading_info", ast.Constant(False))
        return (
            isinstance(asked, ast.Constant)
            and asked.value is True
            and isinstance(parent, ast.Assign)
        )
    return isinstance(parent, ast.Assign)


def unread(source: str, module: str = "") -> list[tuple[str, int]]:
    return [
        (holder, call.lineno)
        for holder, call, read in loads(source)
        if not read and (module, holder) not in NEEDS_NONE
    ]


def test_every_load_reads_its_report() -> None:
    faults = {}
    for path in sorted(SRC.rglob("*.py")):
        module = ".".join(path.relative_to(SRC).with_suffix("").parts)
        if found := unread(path.read_text(), module):
            faults[module] = found
    assert not faults, "loads whose report nobody reads (or name why it needs none)"


def test_no_exception_is_left_over() -> None:
    """A reason that no load has any more is to be deleted."""
    held = {
        (".".join(path.relative_to(SRC).with_suffix("").parts), holder)
        for path in SRC.rglob("*.py")
        for holder, _, read in loads(path.read_text())
        if not read
    }
    assert set(NEEDS_NONE) <= held


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("model, report = M.from_pretrained(x, output_loading_info=True)", False),
        ("model = M.from_pretrained(x)", True),
        ("M.from_pretrained(x, output_loading_info=True)", True),
        ("model.load_state_dict(w)", False),
        ("model.load_state_dict(w, strict=True)", False),
        ("model.load_state_dict(w, strict=False)", True),
        ("model.load_state_dict(w, strict=lenient)", True),
        ("report = set_peft_model_state_dict(m, w)", False),
        ("set_peft_model_state_dict(m, w)", True),
    ],
)
def test_the_scan_tells_them_apart(line: str, found: bool) -> None:
    assert bool(unread(f"def load():\n    {line}\n")) is found
