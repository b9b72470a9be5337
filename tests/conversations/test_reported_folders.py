"""Every folder of shared/fixtures/reported by the command line, as its `cmd.sh` calls it: nothing
ends in a traceback, and every set that its README says is accepted, or refused with a sentence, is
so with its pictures looked at.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phisense.cli import app
from phisense.errors import PhisenseError

#: Folder, file -> exit code, and what the output must hold.
CHECKED = {
    ("06-qwenvl-img-tags", "data.json"): (1, "foreign-tag"),
    ("07-fields-left-out", "data.json"): (0, "3 good"),
    ("08-video-rows", "data.json"): (1, "2 good"),
    ("10-openai-example", "example.jsonl"): (0, "1 good"),
    ("10-openai-example", "weight.jsonl"): (0, "1 good"),
    ("12-paths-of-elsewhere", "data.json"): (0, "8 good"),
    ("13-empties", "data.json"): (0, "6 good"),
    ("13-empties", "nothing.json"): (1, "no row"),
    ("13-empties", "nothing.jsonl"): (1, "no row"),
    ("18-heic-avif", "data.json"): (1, "HEIC"),
    ("18-heic-avif", "embedded.jsonl"): (1, "HEIC"),
    ("19-archives-as-data", "set.json.gz"): (1, "gzip"),
    ("19-archives-as-data", "set.zip"): (1, "zip"),
    ("19-archives-as-data", "shard-000000.tar"): (1, "tar"),
    ("19-archives-as-data", "one-row.json"): (0, "1 good"),
    ("19-archives-as-data", "wrapped.json"): (0, "2 good"),
    ("23-csv-dialects", "semicolon.csv"): (0, "1 good"),
    ("23-csv-dialects", "upper.csv"): (0, "1 good"),
    ("23-csv-dialects", "spaces.csv"): (0, "1 good"),
    ("23-csv-dialects", "filename.csv"): (0, "1 good"),
    ("23-csv-dialects", "cells.csv"): (0, "1 good"),
    ("23-csv-dialects", "utf16.csv"): (0, "1 good"),
    ("25-bytes-that-are-no-text", "cp1252-abs.csv"): (1, "missing-picture"),
    ("25-bytes-that-are-no-text", "cp1252-cells.csv"): (0, "cp1252"),
    ("25-bytes-that-are-no-text", "cp1252-name.csv"): (1, "missing-picture"),
    ("25-bytes-that-are-no-text", "role.json"): (1, "not-utf8"),
    ("25-bytes-that-are-no-text", "surrogate-id.jsonl"): (1, "not-utf8"),
    ("25-bytes-that-are-no-text", "surrogate-text.jsonl"): (1, "not-utf8"),
    ("25-bytes-that-are-no-text", "turn.json"): (1, "not-utf8"),
}


@pytest.mark.parametrize(("folder", "file"), CHECKED, ids=lambda value: str(value))
def test_a_reported_set_is_checked(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, file: str
) -> None:
    reported = fixtures / "reported"
    if not reported.is_dir():
        pytest.skip("the fixtures have no reported situations")
    shutil.copytree(reported / folder, tmp_path / folder)
    shutil.copytree(reported / "img", tmp_path / "img")
    monkeypatch.chdir(tmp_path / folder)
    images = "." if folder == "18-heic-avif" else "../img"
    result = CliRunner().invoke(app, ["check", file, "--images", images])
    said = re.sub(r"\s+", " ", result.output + str(result.exception or ""))
    code, wanted = CHECKED[folder, file]
    assert result.exception is None or isinstance(result.exception, (PhisenseError, SystemExit)), (
        repr(result.exception)
    )
    assert wanted.lower() in said.lower(), said
    assert (result.exit_code != 0) == (code != 0), said
