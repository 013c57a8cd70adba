"""Hostile files: checkpoints, pictures, shards, texts, lists, model configs, manifests, stores."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.outcomes import contained, outcome
from hypothesis import example, given
from hypothesis import strategies as st
from pictures_in_memory import find_pictures
from PIL import Image

from benchmarks.faults.counting import tried
from elip_plugin.check.store import Store
from elip_plugin.errors import DataError
from elip_plugin.export.manifest import read_manifest
from elip_plugin.patching.checkpoints import load_checkpoint
from elip_plugin.pictures import find_items
from elip_plugin.visualize.html import to_html
from elip_plugin.visualize.views import Row, StageView, Visualization


class Touch:
    """A pickle of it makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def spoiled(whole: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a file, cut, or with a few others in some place."""
    place = st.integers(0, len(whole) - 1)
    cut = place.map(lambda end: whole[:end])
    other = st.tuples(place, st.binary(min_size=1, max_size=8))
    return cut | other.map(lambda o: whole[: o[0]] + o[1] + whole[o[0] + len(o[1]) :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "step": 3, "name": "x"}
FORMS = (saved(WEIGHTS), saved(WEIGHTS, _use_new_zipfile_serialization=False))


@given(spoiled(FORMS[0]) | spoiled(FORMS[1]) | st.binary(max_size=80))
def test_checkpoints(folder: Path, raw: bytes) -> None:
    path = folder / "weights.pt"
    path.write_bytes(raw)
    outcome(lambda: load_checkpoint(path))
    tried("checkpoints")


@given(st.sampled_from(["whole", "key", "value", "deep"]), st.booleans(), st.booleans())
def test_checkpoints_that_execute(folder: Path, where: str, old: bool, bare: bool) -> None:
    touch = Touch(folder / "executed")
    values: dict[str, Any] = {
        "whole": touch,
        "key": {(touch, 1): 1},
        "value": {"state_dict": touch},
        "deep": {"a": [{"b": (touch, torch.zeros(1))}]},
    }
    path = folder / "executes.pt"
    if bare:
        path.write_bytes(pickle.dumps(values[where]))
    else:
        path.write_bytes(saved(values[where], _use_new_zipfile_serialization=not old))
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_checkpoint(path)
    assert not (folder / "executed").exists()
    tried("checkpoints that execute")


def painted(form: str, mode: str = "RGB", **options: Any) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(array[..., 0].astype(np.uint16) * 200).save(file, form)
    else:
        Image.fromarray(array[..., :3]).convert(mode).save(file, form, **options)
    return file.getvalue()


def animated(form: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue", "green")]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES = {
    "png": painted("PNG"), "palette": painted("PNG", "P"), "one bit": painted("PNG", "1"),
    "alpha": painted("PNG", "LA"), "16 bits": painted("PNG", "I;16"), "jpeg": painted("JPEG"),
    "CMYK": painted("JPEG", "CMYK"), "progressive": painted("JPEG", progressive=True),
    "grey": painted("JPEG", "L"), "webp": painted("WEBP"), "bmp": painted("BMP"),
    "tiff": painted("TIFF", "I;16"), "gif": painted("GIF", "P"), "animated gif": animated("GIF"),
    "animated webp": animated("WEBP"), "animated png": animated("PNG"), "ppm": painted("PPM"),
}  # fmt: skip


def read_as_picture(path: Path) -> None:
    """All readers of pictures take it or refuse it, and agree."""
    shown = outcome(lambda: find_pictures([path], 1))
    if shown is not None:
        assert shown[0].image.mode == "RGB"
        [item] = find_items([path])
        assert item.read().tobytes() == shown[0].image.tobytes()


@pytest.mark.parametrize("kind", PICTURES)
def test_kinds_of_pictures_are_read(kind: str, folder: Path) -> None:
    path = folder / "whole.png"
    path.write_bytes(PICTURES[kind])
    assert find_pictures([path], 1)
    read_as_picture(path)
    tried("pictures")


@given(st.one_of(*map(spoiled, PICTURES.values()), st.binary(max_size=60)))
def test_pictures(folder: Path, raw: bytes) -> None:
    path = folder / "spoiled.jpg"
    path.write_bytes(raw)
    read_as_picture(path)
    tried("pictures")


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 60_000, 2**31 - 1])
def test_pictures_that_explode(side: int, folder: Path) -> None:
    path = folder / "bomb.png"
    path.write_bytes(claimed(side, side))
    assert contained(lambda: find_pictures([path], 1)) == "no harm"
    tried("pictures that explode")


def shard(*members: tuple[str, bytes], change: Callable[[Any], None] = lambda _: None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            tar.addfile(info, io.BytesIO(content) if info.isfile() else None)
    return file.getvalue()


PAIR = (("a.png", PICTURES["png"]), ("a.txt", b"a cat"))
SHARD = shard(*PAIR)


def read_as_shard(path: Path) -> None:
    def read_all() -> None:
        for item in find_items([path]):
            decode = outcome(item.read) if item.size < 1 << 24 else None
            assert decode is None or decode.mode == "RGB"

    outcome(lambda: find_pictures([path], 9))
    try:
        outcome(read_all)
    except OSError as error:  # Pillow's word on a broken picture, which the check notes
        assert "image" in str(error) or "broken" in str(error) or "truncated" in str(error)


@given(spoiled(SHARD) | st.binary(max_size=600) | spoiled(gzip.compress(SHARD)))
def test_shards(folder: Path, raw: bytes) -> None:
    path = folder / "spoiled.tar"
    path.write_bytes(raw)
    outcome(lambda: find_items([path]))
    outcome(lambda: find_pictures([path], 9))
    tried("shards")


def as_link(kind: bytes, target: str) -> Callable[[Any], None]:
    def change(info: Any) -> None:
        info.type, info.linkname, info.size = kind, target, 0

    return change


def test_shards_that_lead_elsewhere(folder: Path) -> None:
    """Members are read under their names, and nothing is written or followed."""
    secret = folder / "secret.png"
    secret.write_bytes(PICTURES["png"])
    inside = folder / "inside"
    inside.mkdir()
    path = inside / "links.tar"
    before = sorted(folder.rglob("*"))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        for target in ("../secret.png", str(secret), "a.png"):
            path.write_bytes(shard(("a.png", b""), change=as_link(kind, target)))
            assert outcome(lambda: find_items([path])) is None
            assert outcome(lambda: find_pictures([path], 9)) is None
            path.unlink()
            tried("shards that lead elsewhere")
    for name in ("../../out.png", "/tmp/out.png", "..", "a/../../out.png", "\\\\host\\out.png"):
        path.write_bytes(shard((name, PICTURES["png"])))
        for read in (lambda: find_items([path]), lambda: find_pictures([path], 9)):
            outcome(read)
        path.unlink()
        tried("shards that lead elsewhere")
    assert sorted(folder.rglob("*")) == before


def sparse(info: Any) -> None:
    info.size = 1 << 42


def test_shards_that_explode(folder: Path) -> None:
    """A member says that it has terabytes, or a compressed shard becomes many bytes."""
    path = folder / "bomb.tar"
    header = tarfile.TarInfo("a.png")
    header.size = 1 << 42
    text = tarfile.TarInfo("a.txt")
    text.size = 1 << 42
    zeros = gzip.compress(bytes(1 << 29), 9)
    whole = shard(PAIR[0])[:-1024]
    for raw in (header.tobuf(), whole + text.tobuf(), zeros):
        path.write_bytes(raw)
        for read in (lambda: find_items([path]), lambda: find_pictures([path], 9)):
            assert contained(read) == "no harm"
            tried("shards that explode")


DEEP = b"[" * 100_000


@pytest.mark.parametrize("raw", [DEEP, b"\xff", b"{", b"[1]", b'{"manifest": 1}'])
def test_manifests(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(DataError, match="export the model again"):
        read_manifest(tmp_path)
    tried("lists of texts")


@given(st.data())
def test_stores(folder: Path, data: st.DataObject) -> None:
    """What a check has computed, spoiled: it is said, or computed again, and never pickled."""
    place = folder / "store"
    store = Store(place)

    keys = ["a" * 32, "b" * 32]

    def fill() -> None:
        missing = [key for key, row in zip(keys, store.places(keys)) if row < 0]
        with store.adding() as add:
            add(missing, np.full((len(missing), 2), 7.0, np.float32))
        store.rows(keys)

    for old in place.glob("*"):
        old.unlink()
    fill()
    files = sorted(path for path in place.glob("*") if path.name != "lock")
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(spoiled(path.read_bytes()) | st.just(DEEP)))
    outcome(fill)
    tried("stores of embeddings")


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


MARKUP = st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$model ${weights} $$", "'"]
)
words = st.lists(st.text(max_size=20) | MARKUP, max_size=3).map("".join)


def page_of(name: str, text: str | None) -> str:
    stage = StageView(2, (0,), {1: 0.5}, (), (2, 3))
    pictures = ((name, Image.new("RGB", (8, 8))),)
    return to_html(Visualization(name, name, (2, 2), pictures, (Row(0, text, (stage,), None),)))


PLAIN = Tags(page_of("a", "b"))


@given(words, words)
@example("\ud800", "\udcff")
@example("a", "word " * 2_000_000)
def test_captions_in_a_page(name: str, text: str) -> None:
    """Markup in a caption or a name of a file is text: no tag or attribute more than without."""
    page = Tags(page_of(name, text).encode("utf-8", "replace").decode())
    assert (page.tags, page.attributes) == (PLAIN.tags, PLAIN.attributes)
    tried("captions")


@pytest.mark.parametrize("raw", [DEEP, b"\xff\xfe", b"[]", b"{", b'{"vision_cfg": 3}', b"null"])
def test_model_configs(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be read is named, and takes nothing else along."""
    pytest.importorskip("open_clip")
    from elip_plugin.hosts.open_clip import names

    (tmp_path / "bad.json").write_bytes(raw)
    monkeypatch.setattr(
        names.factory, "_MODEL_CONFIG_PATHS", list(names.factory._MODEL_CONFIG_PATHS)
    )
    monkeypatch.setattr(names.factory, "_MODEL_CONFIGS", dict(names.factory._MODEL_CONFIGS))
    if names._fault_of(tmp_path / "bad.json") is not None:
        with pytest.warns(UserWarning, match="is no model config"):
            names._add_user_configs(tmp_path)
    else:
        names._add_user_configs(tmp_path)
        names.factory._rescan_model_configs()
    assert names.find("elip-ViT-B-16") is not None
    tried("configuration files")


def test_a_zip_of_other_files_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for names in (("a/data.pkl",), ("../data.pkl", "/etc/data.pkl"), ("archive/data/0",)):
        with zipfile.ZipFile(path, "w") as made:
            for name in names:
                made.writestr(name, b"\x80\x02}q\x00.")
        outcome(lambda: load_checkpoint(path))
        assert [p.name for p in tmp_path.iterdir()] == ["other.pt"]
        tried("checkpoints")
