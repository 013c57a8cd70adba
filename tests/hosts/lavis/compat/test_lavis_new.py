"""LAVIS beside libraries newer than its pins: equal losses and gradients.

The known answers come from LAVIS' own pins (timm 0.4.12, transformers 4.26.1, numpy 1):
`python tests/lavis_stock.py` writes them there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lavis_attributes import attributes, changes
from lavis_stock import (
    ANSWERS,
    TRAINED,
    albef_config,
    blip_caption,
    fill,
    local_tokenizer,
    losses,
    samples,
)

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.hosts.versions import installed_version

TOLERANCE = 1e-5
PINNED = installed_version("transformers") < (4, 27)


@pytest.fixture
def lavis(tmp_path: Path) -> Any:
    fixes.apply("import")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's old names
        module = pytest.importorskip("lavis")
    fixes.apply("register")
    with local_tokenizer(tmp_path):
        yield module


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    return json.loads(ANSWERS.read_text())


@pytest.mark.parametrize("name", TRAINED)
def test_losses_equal_those_of_the_pinned_stack(lavis: Any, answers: Any, name: str) -> None:
    expected = torch.tensor(answers["losses"][name], dtype=torch.float64)
    actual = torch.tensor(losses(TRAINED[name]), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.skipif(PINNED, reason="LAVIS' own generation works beside its pins")
def test_writing_text_is_refused_in_one_sentence(lavis: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"LAVIS' own pins .*transformers' own BLIP"):
        fill(blip_caption()).eval().generate(samples(), max_length=12)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "XBertEncoder", "XBertLMHeadDecoder"])
def test_published_bert_weights_load(lavis: Any, tmp_path: Path, name: str) -> None:
    """As `from_pretrained("bert-base-uncased")` does: old names of norms, no position ids."""
    from lavis.models import med

    base = fill(med.BertForMaskedLM(albef_config()))
    published = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in base.state_dict().items()
        if not key.endswith(("position_ids", "decoder.weight", "decoder.bias"))
    }
    torch.save(published, tmp_path / "pytorch_model.bin")
    options = {} if name != "XBertEncoder" else {"add_pooling_layer": False}
    model = getattr(med, name).from_pretrained(str(tmp_path), config=albef_config(), **options)
    encoder = model if name == "XBertEncoder" else model.bert
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in base.bert.state_dict().items())
    if name != "XBertEncoder":
        assert all(torch.equal(model.state_dict()[k], v) for k, v in base.state_dict().items())
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_preparing_sets_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(metadata, "version", lambda name: "4.57.6")
    # Whichever transformers is really here, it is not this test's matter.
    monkeypatch.setattr(fixes, "FIXES", [f for f in fixes.FIXES if f.where == "numpy:Inf"])
    monkeypatch.setattr(numpy, "Inf", None, raising=False)
    fixes.apply("import")
    assert numpy.Inf is None
    monkeypatch.delattr(numpy, "Inf")
    fixes.apply("import")
    fixes.apply("import")
    assert numpy.Inf == float("inf")


def test_transformers_5_is_refused_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "4.57.6")
    fixes.check_libraries()
    monkeypatch.setattr(metadata, "version", lambda name: "5.24.0")
    with pytest.raises(
        UnsupportedModelError, match=r"5\.24\.0 .*pip install 'transformers<5'"
    ) as e:
        fixes.check_libraries()
    assert "\n" not in str(e.value)
    with mock.patch.object(fixes, "find") as touched:
        fixes.apply("import")
    touched.assert_not_called()


def test_each_fix_names_what_exists(lavis: Any) -> None:
    """The names that newer libraries dropped and those LAVIS lacks are there once applied."""
    for fix in fixes.FIXES:
        for owner, name in (fixes.find(fix.where), fixes.find(fix.by)):
            assert hasattr(owner, name) or (fix.when == "register" and not fix.needed()), fix


def test_fixes_can_be_applied_again(lavis: Any) -> None:
    fixes.apply("model")
    before = attributes()
    for _ in range(2):
        fixes.apply("register")
        fixes.apply("model")
    assert changes(before) == []


@pytest.mark.slow
def test_lavis_imports_in_a_process_of_its_own() -> None:
    """With the start-up hook alone, and with the package imported first."""
    pytest.importorskip("lavis")
    for code in ("import lavis; import lavis.runners", "import elip_plugin; import lavis"):
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{code}; import numpy; print(numpy.Inf)"],
            capture_output=True,
            text=True,
            cwd=os.environ.get("TMPDIR", "/"),
            env={**os.environ, "ELIP_AUTOLOAD": "1"},
            check=False,
        )
        assert out.stdout.strip() == "inf", out.stderr


def test_the_fixes_load_no_host() -> None:
    code = (
        "import sys, elip_plugin.hosts.lavis.compat.fixes; "
        "print([m for m in ('lavis', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
