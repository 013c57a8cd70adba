"""An unknown name is answered on one line, with the nearest names."""

from __future__ import annotations

import sys

import pytest

from elip_plugin import ElipConfig
from elip_plugin.cli import main as cli
from elip_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("plan --model elip-ViT-B-61", "did you mean ['elip-ViT-B-16', "),
        (
            "plan --model ViT-B-16 --preset fsat",
            "preset 'fsat' is not known; did you mean ['fast']?",
        ),
        ("models --host openclip", "did you mean ['open_clip']?"),
    ],
)
def test_names(
    words: str, nearest: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setattr(sys, "argv", ["elip", *words.split()])
    with pytest.raises(SystemExit) as done:
        cli.main()
    error = capsys.readouterr().err
    assert done.value.code == 1
    assert error.startswith("elip: ") and error.count("\n") == 1
    assert nearest in error
    assert error.partition("did you mean [")[2].partition("]")[0].count(",") <= 2


def test_keys() -> None:
    given = {"text_wieght": 0.1, "stages": [{"blok": 2, "block": 2, "lookahead": 1, "keep": 0.5}]}
    with pytest.raises(ConfigError) as caught:
        ElipConfig.from_mapping(given)
    assert "key 'text_wieght' is not known; did you mean ['text_weight']?" in str(caught.value)
    assert "stage 0: key 'blok' is not known; did you mean ['block']?" in str(caught.value)
