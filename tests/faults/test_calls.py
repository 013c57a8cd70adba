"""Hostile names, options of commands, guides, progress: one error, or a right result."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.outcomes import outcome
from hypothesis import example, given, settings
from hypothesis import strategies as st

import elip_plugin
from benchmarks.faults.counting import is_long, tried
from elip_plugin import apply
from elip_plugin.cli import main as cli
from elip_plugin.errors import ElipError
from elip_plugin.hosts.registry import find_model

FEW = settings(max_examples=60 if is_long() else 5)

alphabet = st.characters(codec="utf-8")
names = st.one_of(
    st.text(alphabet, max_size=30),
    st.sampled_from(["ViT-B-32", "elip-ViT-B-32", "elip_blip_vqa", "elip-", "hf-hub:", "../x"]),
    st.builds("{}{}".format, st.sampled_from(["elip-", "elip_", "hf-hub:", "local-dir:", "/", "."]),
              st.text(alphabet, max_size=10)),
)  # fmt: skip


@settings(max_examples=20 if is_long() else 3)  # each asks every host for all its names
@given(names)
@example("x" * 3000)
@example("elip-ViT-B-32\x00")
def test_names(name: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        found = outcome(lambda: find_model(name))
    assert found is None or name in (found.name, found.base)
    tried("names of models")


option = st.sampled_from(
    ["--plan", "--keep", "--image-size", "--target-speedup", "-o", "--nothing"]
)
value = st.one_of(
    st.text(alphabet, max_size=8).filter(lambda text: "\x00" not in text),
    st.integers(-5, 10**20).map(str),
    st.floats().map(str),
    st.lists(st.floats(-1, 2).map(str), max_size=4).map(",".join),
    st.sampled_from(["paper", "half", "nan,0.5", "inf", ""]),
)


@FEW
@given(st.dictionaries(option, value, min_size=1, max_size=3))
@example({"--keep": "nan"})
@example({"--target-speedup": "nan"})
@example({"--target-speedup": "inf"})
@example({"--image-size": "0"})
@example({"--image-size": "-16"})
@example({"--image-size": "17"})
def test_options_of_the_command(options: dict[str, str]) -> None:
    """It ends with 0, or says on one line why not."""
    pytest.importorskip("open_clip")
    words = [word for pair in options.items() for word in pair]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["elip", "plan", "--model", "ViT-tiny", *words])
        redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with redirected[0], redirected[1], pytest.raises(SystemExit) as done:
            cli.main()
            raise SystemExit(0)
    code = done.value.code or 0
    assert code in (0, 1, 2), code
    said = err.getvalue()
    assert "Traceback" not in said
    if code == 1:
        assert said.splitlines()[-1].startswith("elip: "), said
    tried("options of commands")


def test_a_name_that_is_no_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture on a disk of another system: the page is written."""
    pytest.importorskip("open_clip")
    from PIL import Image

    name = os.fsdecode(b"la\xe9")
    Image.new("RGB", (70, 64)).save(tmp_path / f"{name}.png")
    page = tmp_path / "page.html"
    words = ["--model", "elip-half-ViT-tiny", "--image", str(tmp_path), "-o", str(page)]
    monkeypatch.setattr(sys, "argv", ["elip", "show", *words])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code and "la?.png" in page.read_text()
    tried("names of files")


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 31, 32, 33]), max_size=4)
kinds = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool,
     torch.complex64, torch.uint8]
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    open_clip = pytest.importorskip("open_clip")
    from conftest import TINY

    torch.manual_seed(0)
    return open_clip.CLIP(**TINY, output_dict=True).train()


@FEW
@given(shapes | st.just([4, 32]), kinds, st.sampled_from(["caption", "batch"]))
@example([4, 32], torch.int64, "caption")
@example([0, 32], torch.float32, "batch")
def test_guides(model: Any, shape: list[int], kind: torch.dtype, source: str) -> None:
    handle = apply(model, {"preset": "fast", "text_weight": 0.9, "guide_source": source})
    try:

        def run() -> torch.Tensor:
            with handle.guide(torch.ones(shape).to(kind)), torch.no_grad():
                return model.encode_image(torch.ones(4, 3, 64, 64))

        features = outcome(run)
        assert features is None or (features.shape == (4, 32) and features.isfinite().all())
        right = shape == [4, 32] or (source == "batch" and shape[1:] == [32] and shape[0] > 0)
        assert features is None or (len(shape) == 2 and right)
        if right and kind == torch.float32:
            assert features is not None
    finally:
        handle.remove()
    tried("guides")


steps = st.one_of(
    st.integers(-3, 10**9),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, 0.5]),
)


@given(steps, steps)
@example(math.nan, 10)
@example(3, math.inf)
@example(10**400, 10**400)
@example(10**400, 1.5)
@example(0.5, 10**400)
def test_progress(model: Any, step: Any, total: Any) -> None:
    handle = apply(model, {"preset": "fast", "warmup": 0.3, "final_unpruned": 0.2})
    try:
        outcome(lambda: handle.update_progress(step, total))
        progress = elip_plugin.patching.install.find_pruner(model).progress
        assert 0 <= progress.level <= 1 and 0 <= progress.text_weight <= 1
    finally:
        handle.remove()
    tried("reports of progress")


@pytest.mark.parametrize("what", [None, 3, "model", object(), torch.nn.Linear(2, 2), dict])
def test_what_is_no_model(what: Any) -> None:
    for call in (apply, elip_plugin.find_handle):
        with pytest.raises(ElipError):
            call(what)
        tried("things that are no model")
