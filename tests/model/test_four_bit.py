"""4 bits are refused where a merge measured that they lose; where nobody did, the log says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import ArtifactError, PhisenseError
from phisense.model.four_bit import check_four_bit


def figures(loss: float | None, accuracy: float | None = None) -> dict[str, Any]:
    interval = {"value": accuracy, "low": 0.0, "high": 1.0}
    known = {} if accuracy is None else {"accuracy": interval}
    return {"loss": 0.3, "delta_loss": loss, "same_answers": 0.9, **known}


def write(folder: Path, **measured: Any) -> Path:
    report = {"merged": figures(0.001, 0.8), **measured}
    (folder / "merge_report.json").write_text(json.dumps(report))
    return folder


@pytest.mark.parametrize(
    "found",
    [
        figures(0.0),
        figures(-0.2, 0.9),
        figures(0.1, 0.8),
        figures(0.01, 0.78),
    ],
)
def test_what_keeps_it_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, found: dict[str, Any]
) -> None:
    check_four_bit(write(tmp_path, four_bit=found))
    assert not caplog.records


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (figures(3.249), r"got loss \+3.249; wanted at most \+0.1 and -0.02"),
        (figures(None), "got loss .?nan; wanted"),  # JSON has null in place of NaN
        (figures(0.01, 0.77), r"got loss \+0.010, accuracy -0.030"),
        (figures(0.11, 0.8), r"got loss \+0.110, accuracy [+]0.000"),
    ],
)
@pytest.mark.parametrize("name", ["four_bit", "back_to_nf4"])
def test_what_loses_is_refused(tmp_path: Path, found: dict[str, Any], said: str, name: str) -> None:
    """It says what does not lose; for a folder of an earlier version, that is to merge again."""
    with pytest.raises(PhisenseError, match=said) as refused:
        check_four_bit(write(tmp_path, **{name: found}))
    assert "phisense export --quant q8_0" in str(refused.value)
    assert ("phisense merge RUN again" in str(refused.value)) == (name == "back_to_nf4")


def test_the_control_does_not_decide(tmp_path: Path) -> None:
    """Beside the figures of the way that is taken, those of the naive one are a control."""
    folder = write(tmp_path, four_bit=figures(0.0), back_to_nf4=figures(3.2))
    (folder / "four_bit").mkdir()
    (folder / "four_bit" / "beside.safetensors").touch()
    check_four_bit(folder)


def test_what_nobody_measured_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_four_bit(tmp_path)
        check_four_bit(write(tmp_path))
    said = "nobody measured what 4 bits cost this model; phisense evaluate does"
    assert [said in one.getMessage() for one in caplog.records] == [True, True]


@pytest.mark.parametrize("found", [3, {"loss": 1.0}, {"delta_loss": "none"}])
def test_a_damaged_report_is_an_error(tmp_path: Path, found: object) -> None:
    with pytest.raises(ArtifactError, match="four_bit"):
        check_four_bit(write(tmp_path, four_bit=found))
