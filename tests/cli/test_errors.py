"""An unknown name is answered on one line, with the nearest names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from elip_plugin import ElipConfig, create
from elip_plugin.cli import main as cli
from elip_plugin.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("plan --model elip-ViT-B-61", "did you mean ['elip-ViT-B-16', "),
        (
            "plan --model ViT-B-16 --plan fsat",
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


def one_line(words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """Run the command; return its error, which is one line after what it says of its progress."""
    monkeypatch.setattr(sys, "argv", ["elip", *words.split()])
    with pytest.raises(SystemExit) as done:
        cli.main()
    printed = capsys.readouterr()
    assert done.value.code == 1
    assert "block" not in printed.out  # refused before the table
    *_, error = printed.err.splitlines()
    assert error.startswith("elip: ")
    return str(error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --model ViT-B-16 -o none/plan.yaml", "the folder 'none' does not exist"),
        ("plan --model ViT-B-16 -o plan.toml", "must end in .yaml or .yml or .json"),
        ("plan --model ViT-B-16 --target-speedup 0.5", "must be above 1, got 0.5"),
        ("plan --model ViT-B-16 --target-speedup 90", "twice as much"),
        ("plan --model hf-hub:no/such-model", "OpenCLIP cannot read the config of hf-hub:"),
        ("bench speed --model ViT-tiny --out {file}", "is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_first(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_text("")
    words = words.format(file=tmp_path / "file")
    assert message in one_line(words, monkeypatch, capsys)


def test_only_this_preset_cannot(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("open_clip", minversion="3")
    pytest.importorskip("timm.layers")
    error = one_line("plan --model elip-lowres-MobileCLIP-B", monkeypatch, capsys)
    assert (
        "elip-lowres-MobileCLIP-B is not offered" in error and "'elip-half-MobileCLIP-B'" in error
    )
    assert "cannot be pruned" not in error


def test_a_missing_host_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    modules: Any = sys.modules
    monkeypatch.setitem(modules, "lavis", None)
    for command in ("train", "evaluate"):
        error = one_line(f"lavis {command} --cfg-path run.yaml", monkeypatch, capsys)
        assert "lavis is not installed; run: pip install 'elip-plugin[lavis]'" in error


def test_a_checkpoint_of_other_objects_is_not_advised_to_be_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    torch.save({"state_dict": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(DataError, match=r"bad.pt' of ViT-tiny cannot be read") as caught:
        create("ViT-tiny", checkpoint=str(tmp_path / "bad.pt"))
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text, message in (
        ("none.yaml", None, "cannot be read"),
        ("bad.json", "{", "cannot be read"),
        ("list.yml", "[1]", "holds list, but an ELIP config is a mapping"),
        ("keys.json", '{"elip": {"preset": "fsat"}}', "preset 'fsat' is not known"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            ElipConfig.from_mapping(str(tmp_path / name))
