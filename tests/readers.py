"""Who reads a key of a recipe: attribute access on a value whose type is known to be a section.

Types come from annotations, assignments and loops, so that `evaluate.batch_size` is not counted as
a reader of `features.batch_size`. A key that only a property of a section reads counts as read
where that property is used.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import BaseModel

Section = type[BaseModel]


@dataclass
class Holder:
    """A class that holds sections, such as `RunContext` with its `recipe`: field -> type."""

    fields: dict[str, Type] = field(default_factory=dict)


Type = Section | Holder
#: Calls whose result has the type of what they are called on, or of their first argument.
PASSING = {"values", "items", "get", "model_copy"}
WRAPPING = {"list", "tuple", "sorted", "reversed", "enumerate", "next", "iter", "min", "max"}


def sections_in(annotation: Any) -> Iterator[Section]:
    """The section types that a key may hold: directly, in a union, a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from sections_in(inner)


def keys(section: Section, path: str = "") -> Iterator[tuple[str, Section, str]]:
    """Every key below a section: its path, the section that defines it, its name."""
    for name, one in section.model_fields.items():
        at = f"{path}.{name}".lstrip(".")
        yield at, _owner(section, name), name
        for inner in sections_in(one.annotation):
            yield from keys(inner, at)


def _owner(section: Section, key: str) -> Section:
    """The class that defines a key."""
    return [one for one in section.__mro__ if key in getattr(one, "model_fields", {})][-1]


class Readers:
    """The readers of a schema's keys in some sources: (section, key) -> places, as file:line."""

    def __init__(self, schema: Section, sources: Iterable[tuple[str, str]]) -> None:
        self.sections = {one.__name__: one for one in {schema, *_below(schema)}}
        self.holders: dict[str, Holder] = {}
        self.returning: dict[str, Type] = {}  # functions that return a section, or a holder
        self.reads: dict[tuple[Section, str], list[str]] = defaultdict(list)
        self.used: dict[tuple[Section, str], list[str]] = defaultdict(list)  # properties, methods
        trees = [(name, ast.parse(source)) for name, source in sources]
        nodes = [node for _, tree in trees for node in ast.walk(tree)]
        for _ in range(2):  # a holder may hold another
            for node in nodes:
                if isinstance(node, ast.ClassDef) and (fields := self._fields(node)):
                    self.holders.setdefault(node.name, Holder()).fields |= fields
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and (found := self.annotated(node.returns)):
                self.returning[node.name] = found
        for name, tree in trees:
            _Module(self, name).read(tree)
        self._follow_methods()

    def _fields(self, node: ast.ClassDef) -> dict[str, Type]:
        return {
            line.target.id: found
            for line in node.body
            if isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and (found := self.annotated(line.annotation)) is not None
        }

    def annotated(self, annotation: ast.expr | None) -> Type | None:
        """The section or holder that an annotation names."""
        if annotation is None:
            return None
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        named = (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))
        known = {**self.holders, **self.sections}
        return next((known[name] for name in named if name in known), None)

    def member(self, section: Type, name: str) -> Type | None:
        """What `section.name` is, or contains."""
        if isinstance(section, Holder):
            return section.fields.get(name)
        if name in section.model_fields:
            return next(sections_in(section.model_fields[name].annotation), None)
        method = _method(section, name)
        if method is None:
            return None
        return next(sections_in(get_type_hints(method).get("return")), None)

    def record(self, section: Type, name: str, place: str) -> None:
        """Note that `section.name` is read at a place."""
        if isinstance(section, Holder):
            return
        if name in section.model_fields:
            self.reads[_owner(section, name), name].append(place)
        elif _method(section, name) is not None:
            owner = next(one for one in section.__mro__ if name in vars(one))
            self.used[owner, name].append(place)

    def _follow_methods(self) -> None:
        """What a used property or method reads is read where it is used."""
        done: set[tuple[Section, str]] = set()
        while left := [one for one in self.used if one not in done]:
            for section, name in left:
                done.add((section, name))
                source = textwrap.dedent(inspect.getsource(_method(section, name)))  # type: ignore[arg-type]
                place = f"{section.__name__}.{name}, used at {self.used[section, name][0]}"
                _Module(self, place, own=section).read(ast.parse(source))


def _below(section: Section) -> Iterator[Section]:
    for key in section.model_fields.values():
        for inner in sections_in(key.annotation):
            yield from (inner, *_below(inner))
            yield from (one for one in inner.__mro__ if getattr(one, "model_fields", None))


def _method(section: Section, name: str) -> Any:
    """A property or method that a section's class defines itself."""
    for one in section.__mro__:
        if one is BaseModel:
            break
        if name in vars(one):
            found = vars(one)[name]
            return found.fget if isinstance(found, property) else found
    return None


class _Module:
    """Walks one module. `self.x` and attributes of its classes are known by their names."""

    def __init__(self, readers: Readers, name: str, own: Section | None = None) -> None:
        self.readers, self.name, self.own = readers, name, own
        self.attributes: dict[str, Type] = {}

    def read(self, tree: ast.Module) -> None:
        for _ in range(2):  # an attribute may be assigned below its use
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name in self.readers.holders:
                    self.attributes |= self.readers.holders[node.name].fields
            self._scope(tree.body, {}, note=False)
        self._scope(tree.body, {}, note=True)

    def _scope(self, body: list[ast.stmt], outer: dict[str, Type], *, note: bool) -> None:
        """One function or module: names are resolved in it before reads are noted."""
        known, inner = dict(outer), []
        nodes = []
        waiting: list[ast.AST] = list(body)
        while waiting:
            node = waiting.pop(0)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner.append(node)
            else:
                nodes.append(node)
                waiting += ast.iter_child_nodes(node)
        for _ in range(2):
            for node in nodes:
                self._assign(node, known)
        for node in nodes:
            if note and isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                section = self._type(node.value, known)
                if section is not None:
                    self.readers.record(section, node.attr, f"{self.name}:{node.lineno}")
        for function in inner:
            own = dict(known)
            arguments = function.args
            for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                own.pop(one.arg, None)
                if one.arg == "self" and self.own is not None:
                    own["self"] = self.own
                elif (found := self.readers.annotated(one.annotation)) is not None:
                    own[one.arg] = found
            self._scope(function.body, own, note=note)

    def _assign(self, node: ast.AST, known: dict[str, Type]) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value, known)
        elif isinstance(node, ast.AnnAssign):
            self._know(known, node.target, self.readers.annotated(node.annotation))
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, node.value, known)
        elif isinstance(node, ast.For | ast.comprehension):
            target = node.target
            if isinstance(target, ast.Tuple):  # items() and enumerate(): the value comes last
                target = target.elts[-1]
            self._know(known, target, self._type(node.iter, known))

    def _bind(self, target: ast.expr, value: ast.expr, known: dict[str, Type]) -> None:
        if isinstance(target, ast.Tuple):
            if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
                for one, its in zip(target.elts, value.elts, strict=True):
                    self._bind(one, its, known)
        else:
            self._know(known, target, self._type(value, known))

    def _know(self, known: dict[str, Type], target: ast.expr, section: Type | None) -> None:
        if section is None:
            return
        if isinstance(target, ast.Name):
            known[target.id] = section
        elif isinstance(target, ast.Attribute):
            self.attributes[target.attr] = section

    def _type(self, node: ast.expr, known: dict[str, Type]) -> Type | None:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._type(node.value, known)
            if owner is None:
                return self.attributes.get(node.attr)
            return self.readers.member(owner, node.attr)
        if isinstance(node, ast.Subscript):
            return self._type(node.value, known)
        if isinstance(node, ast.NamedExpr):
            return self._type(node.value, known)
        if isinstance(node, ast.BoolOp | ast.IfExp):
            options = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
            return next((found for one in options if (found := self._type(one, known))), None)
        return self._called(node, known) if isinstance(node, ast.Call) else None

    def _called(self, node: ast.Call, known: dict[str, Type]) -> Type | None:
        called = node.func
        if isinstance(called, ast.Attribute):
            if called.attr in PASSING:
                return self._type(called.value, known)
            if (owner := self._type(called.value, known)) is not None:
                return self.readers.member(owner, called.attr)
            return self.readers.returning.get(called.attr)
        if isinstance(called, ast.Name):
            if called.id in WRAPPING and node.args:
                return self._type(node.args[0], known)
            return self.readers.annotated(called) or self.readers.returning.get(called.id)
        return None
