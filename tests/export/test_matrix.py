"""Every preset and reducer is exported on every kind of tower, or refused with the reason."""

from __future__ import annotations

import re
import warnings

import pytest
from export import matrix

from elip_plugin.errors import ElipError
from elip_plugin.export.formats import FORMATS
from elip_plugin.export.tower import why_not

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm.layers")
pytest.importorskip("transformers", minversion="4.57")


def page() -> str:
    return matrix.PAGE.read_text().partition(matrix.HEADING)[2]


@pytest.mark.parametrize("tower", matrix.TOWERS)
def test_the_page_refuses_what_is_refused(tower: str) -> None:
    """Write it anew with `python tests/export/matrix.py`."""
    for plan, config in matrix.plans().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reason = why_not(matrix.make(tower, config))
            except ElipError as error:
                reason = str(error)
        assert (f"| {plan} | {tower} | " in page()) == (not reason)
        assert not reason or f"- {plan}: {reason}." in page()


def test_the_page_has_every_tower_preset_and_reducer() -> None:
    for tower in (*matrix.TOWERS, *matrix.FURTHER):
        assert f"| {tower} |" in page()
    for name in (*matrix.PRESETS, *matrix.reducers()):
        assert f"`{name}`" in page() or name in {c.reducer.name for c in matrix.PRESETS.values()}


def test_no_difference_on_the_page_is_more_than_rounding() -> None:
    cells = re.findall(r"\de-\d\d|0e\+00", page())
    assert len(cells) >= 3 * len(matrix.RUNTIMES) * len(matrix.TOWERS)
    assert max(map(float, cells)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("tower", [*matrix.TOWERS, *matrix.FURTHER])
def test_a_row_made_again(tower: str) -> None:
    """The first tower in every runtime, the others in ONNX's, where blocks differ most."""
    pytest.importorskip("torch", minversion="2.6")
    for runtime in FORMATS.values():
        for package in runtime.packages:
            pytest.importorskip(package)
    plan = matrix.FURTHER_PLAN if tower in matrix.FURTHER else matrix.plans()["`fast`"]
    runtimes = matrix.RUNTIMES if tower == "OpenCLIP" else ["onnx"]
    found = matrix.row(tower, plan, runtimes)
    assert max(max(differences) for differences in found.values()) < 1e-5
