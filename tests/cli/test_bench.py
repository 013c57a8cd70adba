"""`elip bench quality` is gone, and says where to."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from elip_plugin.cli.main import app
from elip_plugin.errors import ElipError


@pytest.mark.parametrize("options", [[], ["--seeds", "3", "--quick"]])
def test_the_study_of_quality_moved(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "quality", *options])
    assert isinstance(result.exception, ElipError)
    assert "python -m benchmarks.quality" in str(result.exception)
