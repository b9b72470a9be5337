"""What every family must be, and what Phi-3's files have always said."""

from __future__ import annotations

import re
import subprocess
import sys
from hashlib import sha256

import pytest

from phisense.conversations import IMAGE
from phisense.families import FAMILIES, Family
from phisense.recipe import Lora, with_current_keys

from ..conftest import ROOT

PHI3 = FAMILIES["phi3"]


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def test_phi3s_templates_are_those_of_folders_written_before() -> None:
    """`serve` refuses a folder with another template, so a change would refuse every old one."""
    assert digest(PHI3.chat.template(IMAGE)) == "ffc6cfca0f6ec9d5"
    assert digest(PHI3.chat.llama_cpp_template(" ")) == "0d2bf49ed6435824"
    assert digest(PHI3.chat.ollama_template(" ")) == "0b1b64c8fc379713"


def test_a_recorded_pattern_of_phi3_is_the_default() -> None:
    """What was the default before a family chose it is read as left out; a user's is not."""
    told = {"train": {"lora": {"target_modules": PHI3.lora_pattern}}}
    assert with_current_keys(told) == {"train": {"lora": {"target_modules": None}}}
    assert Lora().target_modules is None
    assert Lora(target_modules=PHI3.lora_pattern).target_modules == PHI3.lora_pattern


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_is_consistent(family: Family) -> None:
    assert set(family.chat.tokens) <= set(family.chat.special_tokens)
    assert set(family.token_marks) <= set(family.chat.special_tokens)
    for config in family.known_configs.values():
        assert config["model_type"] == family.model_type
        assert all(config[key] == value for key, value in family.config_marks.items())
    assert all(re.fullmatch(family.lora_pattern, f"x.language_model.layers.0.{name}")
               for name in family.lora_targets)  # fmt: skip


def test_a_family_is_read_without_torch() -> None:
    said = "import sys, phisense.families as f; list(f.FAMILIES.values()); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(ran.stdout.split())


def test_no_other_module_writes_a_tag() -> None:
    """The words of a family stand in its file alone."""
    found = [
        path.relative_to(ROOT / "src" / "phisense").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"<\|(user|assistant|end)\|>|Phi3ForCausalLM", path.read_text())
    ]
    assert sorted(found) == [
        "families/base.py",
        "families/phi3.py",
        "families/phi4_mini.py",
        "practice/pretrain/language.py",
        "prompt.py",
    ]
