"""The commands of the pages: found, and held to the programs that they name, without running them.

A page's shell commands stand in indented blocks, or in fences called `sh`. Every other block is a
fence that names its language. A command runs in the tests unless a comment marks it: at the end of
its line, or on a line of its own for all that follow it up to an empty line.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from ..conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
#: What a comment says of a command that the tests do not run; the reader needs to know the same.
MARK = re.compile(
    r"\b(needs (?:an? GPU|several GPUs|several machines|the network|the real data|your"
    r" account|Ollama|llama-server|the model you train)"
    r"|stays until Ctrl-C|takes (?:minutes|half an hour|hours))\b"
)
#: And of one that ends with exit code 1 on a machine such as the tests'.
FAILS = "exits 1"
#: Programs of others, whose options nobody here can check.
OTHERS = {"ollama", "llama-server", "hf", "python3", "."}
#: Programs that a page may use without a mark: they are there, and harmless in a folder of their
#: own.
SHELL = {"ls", "cp", "head", "cat", "mkdir", "wc", "python", "ln", "mv"}
LANGUAGES = {"text", "yaml", "json", "csv", "python"}


@dataclass(frozen=True)
class Command:
    """One command of a page, with what follows it as its input."""

    page: str
    line: int
    text: str
    mark: str | None
    #: It ends with exit code 1, and the page says so.
    fails: bool = False

    @property
    def words(self) -> list[str]:
        """As the shell splits its first line; settings of the environment left out."""
        words = shlex.split(self.text.split("<<")[0], comments=True)
        return words[
            next(
                (i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)),
                len(words),
            ) :
        ]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def commands(page: Path, text: str | None = None) -> list[Command]:
    """Every shell command of a page, in order. Raises ValueError for a block that is neither shell
    nor of a known language.
    """
    found = []
    for token in MarkdownIt().parse(page.read_text() if text is None else text):
        if token.type not in ("code_block", "fence"):
            continue
        assert token.map is not None
        language = "sh" if token.type == "code_block" else token.info.strip()
        if language == "sh":
            found += _split(page.name, token.map[0] + 1 + (token.type == "fence"), token.content)
        elif language not in LANGUAGES:
            raise ValueError(
                f"{page.name}:{token.map[0] + 1}: a block in {language or 'no language'}, not one"
                f" of sh, {', '.join(sorted(LANGUAGES))}"
            )
        elif language == "python":
            ast.parse(token.content)
        elif language == "yaml":
            yaml.safe_load(token.content)
    return found


def _split(page: str, first: int, block: str) -> list[Command]:
    lines = block.splitlines()
    found, mark, fails, at = [], None, False, 0
    while at < len(lines):
        line, start = lines[at], at
        at += 1
        if not line.strip():
            mark, fails = None, False
            continue
        if line.lstrip().startswith("#"):
            said = MARK.search(line)
            mark, fails = said.group(1) if said else None, FAILS in line
            continue
        while line.endswith("\\"):
            line = f"{line[:-1]} {lines[at].strip()}"
            at += 1
        if here := re.search(r"<<'(\w+)'", line):
            end = lines.index(here.group(1), at)
            line = "\n".join([line, *lines[at : end + 1]])
            at = end + 1
        said = MARK.search(_comment(line))
        found.append(
            Command(
                page,
                first + start,
                line.strip(),
                said.group(1) if said else mark,
                fails or FAILS in _comment(line),
            )
        )
    return found


def _comment(line: str) -> str:
    """What follows the `#` that ends a line's command."""
    found = re.search(r"\s#\s(.*)$", line.splitlines()[0])
    return found.group(1) if found else ""


def parse(command: Command) -> None:
    """Holds a command to the options of its program, without running it. Raises whatever the
    program's own parser raises, or ValueError.
    """
    program, *rest = command.words
    if "-m" in rest and rest[rest.index("-m") + 1] == "phisense":
        cut = rest.index("-m")
        parse_verb(rest[cut + 2 :])
        _parse_launcher(program, [*rest[:cut], "x.py"])
    elif program == "phisense":
        parse_verb(rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        if not set(rest) <= set(targets):
            raise ValueError(f"{command}: the Makefile has no {rest}")
    elif program in ("pip", "python") and "install" in rest:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        for named in re.findall(r"phisense\[([\w,]+)\]", command.text):
            if not set(named.split(",")) <= set(extras):
                raise ValueError(f"{command}: there is no extra {named}")
    elif program == "python" and rest and rest[0].startswith("bench/"):
        if not (ROOT / rest[0]).is_file():
            raise ValueError(f"{command}: there is no {rest[0]}")
    elif program not in OTHERS | SHELL:
        raise ValueError(f"{command}: an unknown program, or no command at all")


def parse_verb(words: list[str]) -> dict[str, Any]:
    """What typer makes of `phisense VERB ...`; a shipped recipe must take the keys that `--set`
    names.
    """
    import typer

    from phisense.cli import app
    from phisense.recipe import load_recipe, shipped_recipes

    group: Any = typer.main.get_command(app)
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb not in group.commands:
        raise ValueError(f"phisense has no verb {verb or '(none)'}")
    params: dict[str, Any] = (
        group.commands[verb].make_context(verb, words[words.index(verb) + 1 :]).params
    )
    if params.get("recipe") in shipped_recipes():
        load_recipe(params["recipe"], tuple(params.get("set_") or ()))
    return params


def _parse_launcher(program: str, words: list[str]) -> None:
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(words[1:])
    elif program != "python":
        raise ValueError(f"{program} is no launcher")


def inline(page: Path) -> list[str]:
    """`phisense VERB ...` within sentences and tables."""
    return re.findall(r"`(phisense [^`]+)`", page.read_text())


def check_inline(text: str) -> None:
    """A verb that exists, and options that it has; what stands for a value may be anything."""
    from phisense.cli import app

    known = {
        command.name or command.callback.__name__: command.callback
        for command in app.registered_commands
        if command.callback
    }
    verb, *rest = re.sub(r"[\[\]]", "", text).split()[1:]
    if verb.startswith("-") or verb == "VERB":
        return
    if verb not in known:
        raise ValueError(f"{text}: there is no such verb")
    import typer

    group: Any = typer.main.get_command(app)
    options = {
        word
        for param in group.commands[verb].params
        for word in (*param.opts, *param.secondary_opts)
    }
    for word in rest:
        if re.match(r"--?[a-z]", word) and word not in options:
            raise ValueError(f"{text}: {verb} has no {word}")
