"""Damaged stores: features are right or refused. `bench/damage_store.py` draws five hundred; here
each way of damaging comes once.
"""

from __future__ import annotations

import collections
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ROOT


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The benchmark as a module, with a world to draw from."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        spec = importlib.util.spec_from_file_location(
            "damage_store", ROOT / "bench" / "damage_store.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "bench"))
    return module, module.make(tmp_path_factory.mktemp("damages"))


@pytest.mark.slow
def test_a_damaged_store_gives_right_features_or_refuses(bench: Any) -> None:
    """Each kind once, and some together; then the advice is followed. Without the checks some would
    be wrong.
    """
    module, world = bench
    wrong: collections.Counter[str] = collections.Counter()
    for number in range(len(module.DAMAGES)):
        one = module.try_one(world, number, 0)
        told = (number, one)
        assert set(one["found"].values()) <= {"right", "refused"}, told
        assert set(one["after"].values()) <= {"right", "refused"}, told
        assert one["repaired"].startswith(("whole", "refused: ")), told
        assert not one["changed"], told
        wrong.update(check for check in module.CHECKS if one["unchecked"][check])
    assert wrong["any"] >= 10, "the control"
    assert all(wrong[check] for check in ("picture", "checksum", "places")), (
        "each of them is needed"
    )


def test_pictures_are_far_enough_apart_to_tell(bench: Any) -> None:
    module, world = bench
    assert module.separated(world) > 100 * max(module.APART.values())
    assert Path(world.at).is_dir()
