"""The emojis: parsing icon sets, one name in all styles, the split, files and errors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("resvg_py")

from benchmarks.data import emojis, files, icons, names, package
from benchmarks.data.__main__ import app
from benchmarks.data.files import DataSetError

STYLES = ("one", "two", "three")
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def icon_set(style: str, shown: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """An icon set as Iconify writes them: each icon is a square of a colour."""
    bodies = {
        name: {"body": f'<path fill="{colour}" d="M2 2h8v{8 + len(style)}h-8z"/>'}
        for name, colour in shown.items()
    }
    info = {
        "name": style.title(),
        "author": {"name": f"{style}'s author", "url": f"https://example.org/{style}"},
        "license": {"spdx": "MIT"},
    }
    return {"prefix": style, "icons": bodies, "width": 20, "height": 20, "info": info, **more}


def pack(path: Path, sets: Mapping[str, Any]) -> Path:
    """A package as npm packs it."""
    with tarfile.open(path, "w:gz") as tar:
        for style, content in sets.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/json/{style}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of six names, and one name that only the first has."""
    sets = {}
    for s, style in enumerate(STYLES):
        shown = {name: f"#{40 * s:02x}{30 * i:02x}80" for i, name in enumerate(NAMES)}
        if s == 0:
            shown |= {"gnu": "#123456", "gnu-dark-skin-tone": "#000000", "white": "#ffffff"}
            shown |= {"ant-again": shown["ant"]}  # looks exactly like "ant"
        sets[style] = icon_set(style, shown)
    return pack(tmp_path_factory.mktemp("package") / "icons.tgz", sets)


def make(out: Path, cache: Path, archive: Path, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"styles": STYLES, "size": 16, "held_out": 2, **more}
    return emojis.write_emojis(out, cache, archive=archive, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_skin_tones_and_withdrawn_icons_are_left_out() -> None:
    shown = dict.fromkeys(
        ("singer", "singer-medium-dark", "hand-light-skin-tone", "traffic-light", "old"), "red"
    )
    content = icon_set("one", shown, aliases={"vocalist": {"parent": "singer"}})
    content["icons"]["old"]["hidden"] = True
    content["aliases"]["turned"] = {"parent": "singer", "hFlip": True}
    parsed = icons.parse("one", content)
    assert list(parsed.icons) == ["singer", "traffic-light"]
    assert (parsed.skin_tones, parsed.withdrawn) == (2, 1)
    assert parsed.aliases == {"vocalist": "singer"}
    assert parsed.info["license"] == "MIT"


def test_an_icons_box_is_its_own_or_that_of_the_set() -> None:
    content = icon_set("one", {"a": "red", "b": "red"})
    content["icons"]["b"] |= {"left": 1, "width": 30}
    parsed = icons.parse("one", content)
    assert 'viewBox="0 0 20 20"' in parsed.icons["a"]
    assert 'viewBox="1 0 30 20"' in parsed.icons["b"]


@pytest.mark.parametrize("content", [{}, {"icons": {"a": {}}}, {"icons": {"a": {"body": ""}}}, []])
def test_what_is_no_icon_set_is_named(content: Any) -> None:
    with pytest.raises(DataSetError, match="one is not an icon set"):
        icons.parse("one", content)


def test_a_picture_is_over_white_with_its_alpha() -> None:
    svg = icons.parse("one", icon_set("one", {"a": "#ff0000"})).icons["a"]  # 2..10 by 2..13 of 20
    picture, alpha = icons.render(svg, 20)
    assert picture.shape == (20, 20, 3) and alpha.shape == (20, 20)
    assert picture[5, 5].tolist() == [255, 0, 0] and alpha[5, 5] == 255
    assert picture[15, 15].tolist() == [255, 255, 255] and alpha[15, 15] == 0
    assert (alpha > 0).sum() == 8 * 11


def test_a_wide_icon_keeps_its_shape() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20">'
        '<path d="M0 0h40v20h-40z"/></svg>'
    )
    _, alpha = icons.render(svg, 20)
    rows, columns = np.nonzero(alpha)
    assert (rows.min(), rows.max()) == (5, 14)
    assert (columns.min(), columns.max()) == (0, 19)


def test_a_picture_is_mixed_with_its_ground() -> None:
    red, half = np.full((1, 1, 3), [200, 0, 0], np.uint8), np.full((1, 1), 51, np.uint8)
    assert icons.over(red, half, 100).tolist() == [[[120, 80, 80]]]


def test_spellings_of_a_name_become_one() -> None:
    shown = {
        "openmoji": ["flag-peru", "lion", "broken-heart", "axe", "axe2", "keycap-1", "keycap-2"],
        "noto": ["flag-for-peru", "lion", "broken-heart", "keycap"],
        "twemoji": ["lion"],
        "noto-v1": ["lion"],
        "emojione": ["flag-for-flag-peru", "lion-face"],
        "streamline-emojis": ["peru", "lion-face-1", "lion-face-2"],
        "fxemoji": ["brokenheart", "heartflag", "lionface", "zzz"],
    }
    unified = names.unify_names(shown, {"noto": {"lion-face": "lion"}})
    found = {
        style: [unified.get((style, icon)) for icon in listed] for style, listed in shown.items()
    }
    assert found["openmoji"] == [
        "flag peru", "lion", "broken heart", "axe", "axe", "keycap 1", "keycap 2",
    ]  # fmt: skip
    assert found["noto"] == ["flag peru", "lion", "broken heart", "keycap"]
    assert found["emojione"] == ["flag peru", "lion"]
    assert found["streamline-emojis"] == ["flag peru", "lion", "lion"]
    assert found["fxemoji"] == ["broken heart", "heart flag", "lion", None]


def test_the_spelling_of_most_styles_stays() -> None:
    shown = {"a": ["snail"], "b": ["snail"], "c": ["big-snail"]}
    unified = names.unify_names(shown, {"a": {"big-snail": "snail"}})
    assert set(unified.values()) == {"snail"}


def test_an_alias_does_not_join_two_emojis_of_one_set() -> None:
    shown = {"old": ["cricket-game"], "new": ["cricket", "cricket-game"]}
    unified = names.unify_names(shown, {"old": {"cricket": "cricket-game"}})
    assert set(unified.values()) == {"cricket", "cricket game"}


def test_only_names_with_three_styles_are_held_out() -> None:
    styles = {name: set(STYLES) for name in NAMES} | {"gnu": {"one", "two"}}
    held = names.hold_out(styles, 3, seed=0)
    assert len(held) == 3 and "gnu" not in held
    assert held == names.hold_out(dict(reversed(styles.items())), 3, seed=0)
    assert any(held != names.hold_out(styles, 3, seed) for seed in range(1, 9))
    for count in (0, 7):
        with pytest.raises(DataSetError, match="6 of 7 names"):
            names.hold_out(styles, count, seed=0)


def test_no_name_is_in_both_splits(tmp_path: Path, archive: Path) -> None:
    made = make(tmp_path / "out", tmp_path / "cache", archive)
    train, held = (emojis.read_emojis(tmp_path / "out", split) for split in files.SPLITS)
    assert not set(train.captions) & set(held.captions)
    assert set(held.captions) == set(made["held_out_names"]) <= set(NAMES)
    assert len(held) == 2 * 3 and len(train) == 4 * 3 + 1
    assert "gnu" in train.captions
    for split in (train, held):
        assert split.pictures.shape == (len(split), 16, 16, 3)
        assert split.alpha.shape == (len(split), 16, 16)
        assert len({picture.tobytes() for picture in split.pictures}) == len(split)


def test_pictures_belong_to_their_captions(tmp_path: Path, archive: Path) -> None:
    make(tmp_path / "out", tmp_path / "cache", archive)
    train = emojis.read_emojis(tmp_path / "out", "train")
    for picture, caption, style in zip(train.pictures, train.captions, train.styles):
        if caption != "gnu":
            expected = [40 * STYLES.index(style), 30 * NAMES.index(caption), 128]
            assert picture[5, 5].tolist() == expected


def test_the_manifest_counts_and_sums(tmp_path: Path, archive: Path) -> None:
    made = make(tmp_path / "out", tmp_path / "cache", archive)
    assert made == json.loads((tmp_path / "out" / "emojis.json").read_text())
    one = made["sets"]["one"]
    assert (one["pictures"], one["skin_tones"], one["blank"], one["duplicates"]) == (7, 1, 1, 1)
    assert one["train"] + one["held_out"] == one["pictures"]
    assert one["license"] == "MIT"
    assert made["pictures"] == {"train": 13, "held_out": 6}
    assert set(made["files"]) == set(emojis.FILES) - {"emojis.json"}
    for name, digest in made["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert "One, by one's author: MIT" in (tmp_path / "out" / "ATTRIBUTION.txt").read_text()


def test_two_runs_write_the_same_bytes(tmp_path: Path, archive: Path) -> None:
    for run in "ab":
        make(tmp_path / run, tmp_path / f"cache-{run}", archive)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    make(tmp_path / "c", tmp_path / "cache-a", archive, seed=1)
    assert contents(tmp_path / "a")["train.npz"] != contents(tmp_path / "c")["train.npz"]


def test_a_run_goes_on_from_what_is_rendered(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, cache = tmp_path / "whole", tmp_path / "cut", tmp_path / "cache"
    make(whole, tmp_path / "other", archive)
    real, drawn = emojis._draw, []

    def draw(found: icons.IconSet, size: int) -> Any:
        if len(drawn) == 2 and not cut.exists():
            raise KeyboardInterrupt
        drawn.append(found.style)
        return real(found, size)

    monkeypatch.setattr(emojis, "_draw", draw)
    with pytest.raises(KeyboardInterrupt):
        make(cut, cache, archive)
    cut.mkdir()
    (cut / "train.npz.part").write_bytes(b"half")
    damaged = next(cache.glob("one-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    make(cut, cache, archive)
    assert drawn == ["one", "two", "one", "three"]
    (cut / "train.npz.part").unlink(missing_ok=True)
    assert contents(whole) == contents(cut)
    before = (cut / "train.npz").stat().st_mtime_ns
    make(cut, cache, archive)  # nothing is left to do
    assert (cut / "train.npz").stat().st_mtime_ns == before


def test_a_changed_file_is_found_and_made_again(tmp_path: Path, archive: Path) -> None:
    make(tmp_path / "out", tmp_path / "cache", archive)
    (tmp_path / "out" / "train.json").write_text("[]")
    with pytest.raises(DataSetError, match=r"train.json is missing or was changed: run python"):
        emojis.read_emojis(tmp_path / "out", "train")
    make(tmp_path / "out", tmp_path / "cache", archive)
    assert len(emojis.read_emojis(tmp_path / "out", "train")) == 13


def test_a_folder_without_a_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="holds no complete data set"):
        emojis.read_emojis(tmp_path, "train")
    with pytest.raises(DataSetError, match="must be one of"):
        emojis.read_emojis(tmp_path, "test")


def test_files_of_something_else_stay(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataSetError, match=r"something else \(thesis.txt\)"):
        make(tmp_path, tmp_path / "cache", archive)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(DataSetError, match="is a file"):
        make(tmp_path / "thesis.txt", tmp_path / "cache", archive)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size is 4 pixels, but must be 8 to 512"),
        ({"styles": ()}, "must be some of"),
        ({"styles": ("one", "one")}, "each once"),
        ({"styles": ("one", "four")}, r"no icon sets \['four'\]"),
        ({"held_out": 7}, "7 names cannot be held out"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, archive: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataSetError, match=message):
        make(tmp_path / "out", tmp_path / "cache", archive, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "icons.tgz"
    broken.write_bytes(b"not a package")
    with pytest.raises(DataSetError, match="cannot be read"):
        list(package.read_sets(broken, ["one"]))


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a script `npm`, the only program on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(package, "SHA256", hashlib.sha256(b"package").hexdigest())
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin" / "npm"


def write_npm(path: Path, last: str) -> None:
    path.write_text(f'#!/bin/sh\necho "$@" >> "{path}.log"\n{last}\n')
    os.chmod(path, 0o755)


def test_the_package_is_fetched_once(tmp_path: Path, npm: Path) -> None:
    # The folder is npm's last argument.
    write_npm(npm, f'for to in "$@"; do :; done\nprintf package > "$to/{package.FILE}"')
    cache = tmp_path / "cache"
    assert package.fetch(cache) == package.fetch(cache) == cache / package.FILE
    assert [path.name for path in cache.iterdir()] == [package.FILE]
    log = Path(f"{npm}.log").read_text().splitlines()
    assert len(log) == 1 and log[0].startswith(f"pack {package.NAME}@{package.VERSION} ")
    (cache / package.FILE).write_bytes(b"pack")  # cut off
    assert package.fetch(cache).read_bytes() == b"package"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "npm fetches @iconify/json, but is not on the PATH: install Node.js, or"),
        ("echo no network >&2; exit 1", r"failed \(no network\): npm needs a network"),
        (f'printf else > "$5/{package.FILE}"', "npm fetched something else"),
        (":", "npm fetched something else"),
    ],
)
def test_a_package_that_cannot_be_fetched_is_named(
    tmp_path: Path, npm: Path, script: str | None, message: str
) -> None:
    if script:
        write_npm(npm, script)
    with pytest.raises(DataSetError, match=message):
        package.fetch(tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_the_command_says_what_is_wrong(tmp_path: Path, npm: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    for more, message in ((["--sets", "opnmoji"], "openmoji"), ([], "npm")):
        result = CliRunner().invoke(app, ["emojis", *out, *more])
        assert result.exit_code == 2
        assert message in result.output


def test_the_command_writes_and_lists(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emojis, "STYLES", STYLES)
    monkeypatch.setattr(package, "fetch", lambda cache: archive)
    arguments = ["--sets", "one, two,three", "--size", "16", "--held-out", "2"]
    out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, ["emojis", *out, *arguments])
    assert result.exit_code == 0, result.output
    assert "train: 13 pictures of 5 names" in result.output
    assert "held_out: 6 pictures of 2 names" in result.output
    assert "one's author" in result.output
