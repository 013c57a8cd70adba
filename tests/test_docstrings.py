"""Examples in docstrings are run; every public function and class has one."""

from __future__ import annotations

import doctest
import inspect
from importlib import import_module

import pytest

import elip_plugin
from elip_plugin import reducers

MODULES = (
    "api", "config.elip_config", "planning", "core.stage", "reducers", "reducers.base",
    "hosts.registry", "hosts.anyvit.describe", "patching.parts",
)  # fmt: skip
WITHOUT = ("ElipError", "Plan", "Stage", "HostModel")
"""Public names that are made by others, or are made of plain values."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setattr(reducers, "_registered", {})
    module = import_module(f"elip_plugin.{name}")
    failed, tried = doctest.testmod(module, extraglobs={"elip_plugin": elip_plugin})
    reducers.reducers.cache_clear()
    assert failed == 0 and tried > 0


def test_public_names_have_an_example() -> None:
    public = {name: getattr(elip_plugin, name) for name in elip_plugin.__all__}
    without = [n for n, v in public.items() if ">>>" not in (inspect.getdoc(v) or "")]
    assert sorted(without) == sorted(WITHOUT)
