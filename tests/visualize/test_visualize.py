"""`elip show`: pictures in, a page out, and what they show."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_in_memory import Picture, find_pictures
from PIL import Image
from typer.testing import CliRunner

from elip_plugin import ElipConfig, create, find_handle
from elip_plugin.cli.main import app, main
from elip_plugin.core.select import Selection
from elip_plugin.core.trace import Trace
from elip_plugin.errors import ConfigError, DataError, UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.visualize.drawing import GRAY, WIDTH, draw_stage
from elip_plugin.visualize.html import to_html
from elip_plugin.visualize.stages import MOST_STAGES, view_of, visualize
from elip_plugin.visualize.views import Row, StageView, Visualization

TINY = "elip-ViT-tiny"
NASTY = '<script>alert("x")</script> & "cats"'


def picture(colour: str = "red", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    picture("red").save(made / "b.png")
    picture("blue").save(made / "a.jpg")
    (made / "b.txt").write_text("a red field\n")
    (made / "notes.md").write_text("no picture")
    return made


# -- pictures


def test_a_folder_gives_its_images_by_name_with_captions_beside_them(folder: Path) -> None:
    found = find_pictures([folder], most=9)
    assert [(p.name, p.caption) for p in found] == [("a.jpg", None), ("b.png", "a red field")]
    assert [p.name for p in find_pictures([folder / "b.png", folder], most=9)] == ["a.jpg", "b.png"]


def test_a_shard_gives_its_images_with_their_captions(tmp_path: Path) -> None:
    shard = tmp_path / "00000.tar"
    parts = {
        "x.png": png(picture()), "x.txt": b" an x ",
        "y.jpg": png(picture()), "y.json": b'{"caption": "a y"}',
        "z.PNG": png(picture()),
    }  # fmt: skip
    with tarfile.open(shard, "w") as file:
        for name, raw in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
    found = [(p.name, p.caption) for p in find_pictures([shard], most=9)]
    assert found == [
        ("00000.tar/x.png", "an x"), ("00000.tar/y.jpg", None), ("00000.tar/z.PNG", None)
    ]  # fmt: skip


def test_faults_of_pictures(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.tar").write_text("none")
    (folder / "bad.png").write_bytes(b"none")
    for path, message in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path / "empty", "no picture is in"),
        (tmp_path / "no.tar", "is not a webdataset shard"),
        (folder / "bad.png", "bad.png cannot be read as an image"),
    ):
        with pytest.raises(DataError, match=message):
            find_pictures([path], most=9)


# -- running


def tiny(**config: Any) -> Any:
    pytest.importorskip("open_clip")
    return create(TINY, ElipConfig.from_mapping(config) if config else None)


def test_what_is_shown_is_what_the_model_does() -> None:
    shown = tiny(preset="fast", text_weight=1.0)
    handle = find_handle(shown.model)
    before = handle.config
    noise = Image.fromarray(torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy())
    made = visualize(shown, [Picture("n", noise)], ["a cat", "two sofas", "a cat"])
    assert handle.config is before and thread.innermost is None
    one, two, again = made.rows
    assert one.stages == again.stages and again.differing == 0
    assert one.stages != two.stages
    assert two.differing == len(set(two.stages[-1].kept) - set(one.stages[-1].kept))
    for stage, planned in zip(one.stages, handle.plan.stages):
        everywhere = [*stage.kept, *stage.merged, *stage.earlier, *stage.gone]
        assert sorted(everywhere) == list(range(64))
        assert planned.keep - 2 <= len(stage.kept) <= planned.keep  # less earlier merged tokens
        assert not stage.gone  # merged, never lost
        assert sum(stage.merged.values()) == pytest.approx(1, abs=1e-3)
    # What is kept is what the model keeps when it trains by the same text.
    image = shown.preprocess(noise).unsqueeze(0)
    text = shown.encode_text(shown.tokenize(["two sofas"]))
    shown.model.train()
    with torch.no_grad(), handle.guide(text), handle.trace() as trace:
        shown.model.encode_image(image)
    kept = [i for i in trace.stages[-1].kept[0].tolist() if i >= 0]
    assert tuple(kept) == two.stages[-1].kept


def test_the_image_alone_and_texts_that_would_change_nothing() -> None:
    shown = tiny(preset="fast", text_weight=0.0, merge=False)
    made = visualize(shown, [Picture("n", picture(), "ignored")], [])
    (row,) = made.rows
    assert row.text is None and not row.stages[0].merged and row.stages[0].gone
    with pytest.raises(ConfigError, match="leave --text out"):
        visualize(shown, [Picture("n", picture())], ["a cat"])
    rows = visualize(tiny(), [Picture("a", picture(), "its own"), Picture("b", picture())], []).rows
    assert [row.text for row in rows] == ["its own", None]


def test_a_reducer_that_records_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace, "record_groups", lambda *_: None)
    shown = tiny(text_weight=0.0)
    with pytest.raises(UnsupportedModelError, match="'tome' records no stages"):
        visualize(shown, [Picture("n", picture())], [])


def test_a_picture_needs_a_text_where_the_text_alone_chooses(tmp_path: Path) -> None:
    shown = tiny(reducer="similarity")
    with pytest.raises(ConfigError, match=r"the plan chooses by a text .*'similarity'.* --text"):
        visualize(shown, [Picture("n", picture(), "a caption"), Picture("n", picture())], [])
    rows = visualize(shown, [Picture("n", picture(), "a caption"), Picture("n", picture())], ["it"])
    assert [row.text for row in rows.rows] == ["it", "it"]


def test_a_patch_that_weighs_nothing_in_the_merged_token_is_not_dropped() -> None:
    trace = Trace(prefix=1)
    weights = torch.tensor([[1.0, 0.0]])
    for block, kept, dropped in ((2, [0, 1, 2], [3, 4]), (4, [0, 1], [2, 3])):
        # After the first stage: patches 0, 1, 2, and the token of 3 (and, by 0, of 4).
        index = torch.tensor([kept]), torch.tensor([dropped])
        trace.record(block, Selection(*index, weights), present=5 if block == 2 else 4)
    first = view_of(trace.stages[0], None)
    assert first.merged == {3: 1.0, 4: 0.0} and not first.gone and not first.earlier
    assert first.opacities[4] == 0.35
    second = view_of(trace.stages[1], first)
    # What weighs nothing is where its token went.
    assert second.merged == {2: 1.0} and second.earlier == (3, 4) and not second.gone


# -- drawing


def example(grid: tuple[int, int] = (2, 3), text: str = NASTY) -> Visualization:
    rows, columns = grid
    stage = StageView(4, kept=(0, 1), merged={2: 0.25, 3: 0.75}, earlier=(4,), gone=(5,))
    image = picture("lime", (columns * 8, rows * 10))
    shown = Row(0, text, (stage,), None), Row(0, None, (stage,), 1)
    pictures = (("a<b.png", image),)
    return Visualization("elip-X", "6 tokens -> 3", grid, pictures, shown)


def decode(source: str) -> Image.Image:
    start, _, data = source.partition(",")
    assert start == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


class Page(HTMLParser):
    """Collects tags with their attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_one_file_escaped_and_described_in_words() -> None:
    text = to_html(example())
    page = Page(text)
    assert not page.all("script") and not page.all("link")
    assert not re.search(r"https?://", text)
    assert NASTY in page.text  # shown as it was given
    assert [image["alt"] for image in page.all("img")] == [
        "a<b.png, all 6 patches",
        "2 of 6 patches kept, 2 in one merged token, 1 in an earlier one, 1 dropped",
    ] * 2
    assert [th["scope"] for th in page.all("th")] == ["col"] * 3 + ["row"] * 2
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    (region,) = [div for div in page.all("div") if div.get("role") == "region"]
    assert region["tabindex"] == "0" and region["aria-label"]
    assert "prefers-color-scheme: dark" in text
    assert "1 patch kept by the last stage that the first row lost" in page.text
    whole, stage, *_ = (decode(str(image["src"])) for image in page.all("img"))
    assert stage.tobytes() == drawn(example()).tobytes()
    assert whole.getcolors() == [(208 * 173, (0, 255, 0))]


def drawn(made: Visualization) -> Image.Image:
    """The first stage of the first row."""
    image: Image.Image = draw_stage(made.grid, made.pictures[0][1], made.rows[0].stages[0])
    return image


def test_the_drawing_fades_and_colours_the_right_patches() -> None:
    image, side = drawn(example()), WIDTH // 3

    def at(column: int, row: int) -> Any:
        return image.getpixel((column * side + side // 2, row * side + side // 2))

    lime = at(0, 0)
    assert lime == at(1, 0) == (0, 255, 0)
    assert at(0, 1)[0] > at(2, 0)[0] > 40  # the heavier, the more orange
    assert min(at(1, 1)) == min(at(2, 1)) > 200  # nearly paper


def grouped() -> Visualization:
    """A picture of 2 x 3 patches: the left column and the upper right pair are averaged."""
    # Two patches are in a token of another place, which the trace has as gone.
    stage = StageView(1, (4, 5), {}, (), (2, 3), None, ((0, 3), (1, 2)))
    image = picture("black", (24, 20))
    image.paste((200, 100, 0), (0, 0, 8, 10))
    rows = (Row(0, None, (stage,), None),)
    return Visualization("elip-X", "6 -> 4", (2, 3), (("a", image),), rows)


def test_groups_are_filled_with_their_mean_colour_and_bordered() -> None:
    made = grouped()
    (stage,) = made.rows[0].stages
    assert stage.describe() == "4 tokens: 2 of one patch, 2 of 4 similar ones"
    image, side = drawn(made), WIDTH // 3
    seen = [image.getpixel((column * side + side // 2, side // 2)) for column in range(3)]
    assert seen == [(100, 50, 0), (0, 0, 0), (0, 0, 0)]
    edge = round(WIDTH / 3)
    assert image.getpixel((edge, side // 2)) == GRAY
    assert image.getpixel((edge + side, side // 2)) == (0, 0, 0)
    # Below the group: at the left its other patch, at the right another token.
    below, left = 86, side // 2
    assert image.getpixel((left, below)) == (100, 50, 0)
    assert image.getpixel((left + side, below)) == GRAY


def test_reducers_that_merge_groups_are_shown() -> None:
    noise = Image.fromarray(torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy())
    for name, stages in (("tome", MOST_STAGES), ("pool", 1)):
        shown = tiny(reducer=name)
        made = visualize(shown, [Picture("n", noise)], [])
        drawn = made.rows[0].stages
        planned = find_handle(shown.model).plan.stages
        assert 0 < len(drawn) <= stages and drawn[-1].block == planned[-1].block
        for stage in drawn:
            tokens = next(s for s in planned if s.block == stage.block).tokens_out - 1
            assert len(stage.kept) + len(stage.groups) == tokens
            assert sorted([*stage.kept, *(p for g in stage.groups for p in g)]) == list(range(64))


# -- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["show", *arguments])


def test_the_command(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    out = tmp_path / "page.html"
    made = run("--model", TINY, "--image", str(folder), "--text", "a cat", "--text", "a dog",
               "--plan", "fast", "-o", str(out))  # fmt: skip
    assert made.exit_code == 0, made.output
    assert f"2 pictures, 4 rows: {out}" in made.output
    assert "ViT-tiny, plan fast, evaluation not pruned, weights random: " in made.output
    assert out.stat().st_size > 1000


def test_a_checkpoint_is_shown_as_trained(folder: Path, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(9)
    model = open_clip.create_model("ViT-tiny")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_1.pt")
    shown = create(TINY, checkpoint=str(tmp_path / "epoch_1.pt"))
    assert torch.equal(shown.model.visual.conv1.weight, model.visual.conv1.weight)
    (tmp_path / "bad.pt").write_text("none")
    with pytest.raises(DataError, match=r"bad.pt' of ViT-tiny cannot be read"):
        create(TINY, checkpoint=str(tmp_path / "bad.pt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "sheet.gif"], "must end in .html"),
        (["-o", "none/page.html"], "the folder 'none' does not exist"),
        (
            ["-o", "page.html", "--model", "elip-ViT-none"],
            "'elip-ViT-none' is not known to the hosts",
        ),
    ],
)
def test_faults_are_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("open_clip")
    given = [] if "--model" in arguments else ["--model", TINY]
    monkeypatch.setattr(sys, "argv", ["elip", "show", "--image", str(folder), *given, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and message in said.splitlines()[-1]
    assert "Traceback" not in said


NARROW = {"embed_dim": 32, "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32,
          "heads": 2, "layers": 1}}  # fmt: skip
OTHERS = {
    "ViT-shown-wide": (
        {"image_size": [32, 64], "patch_size": 8, "width": 32, "layers": 12, "head_width": 16},
        (4, 8),
    ),
    "ViT-shown-timm": (
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "linear",
         "image_size": 224},
        (14, 14),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OTHERS))
def test_non_square_images_and_timm_towers(name: str, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision, grid = OTHERS[name]
    if "timm_model_name" in vision:
        pytest.importorskip("timm.layers")
    (tmp_path / f"{name}.json").write_text(json.dumps({**NARROW, "vision_cfg": vision}))
    open_clip.add_model_config(tmp_path)
    made = visualize(create(name, "paper"), [Picture("n", picture())], ["a cat"])
    assert made.grid == grid
    side = 224 if "timm_model_name" in vision else 64
    assert made.pictures[0][1].size == (side, side * grid[0] // grid[1])
    kept = made.rows[0].stages[0]
    assert sorted([*kept.kept, *kept.merged]) == list(range(grid[0] * grid[1]))
    assert draw_stage(made.grid, made.pictures[0][1], kept).size[0] == WIDTH


@pytest.mark.parametrize("arch", ["elip_albef_pretrain", "elip_clip"])
def test_lavis_models_are_shown_from_a_runs_checkpoint(arch: str, tmp_path: Path) -> None:
    pytest.importorskip("lavis")
    import lavis_family as family
    from omegaconf import OmegaConf

    base = arch.removeprefix("elip_")
    model = family.pruned(base)
    section = OmegaConf.to_container(OmegaConf.create(family.section(base)))
    state = {"model": model.state_dict(), "config": {"model": section}}
    torch.save(state, tmp_path / "checkpoint_0.pth")
    shown = create(arch, checkpoint=str(tmp_path / "checkpoint_0.pth"))
    for name, weight in shown.model.state_dict().items():
        assert torch.equal(weight, state["model"][name])
    made = visualize(shown, [Picture("n", picture())], ["a red cat", "two dog runs"])
    assert made.grid == (4, 4) and [s.block for s in made.rows[0].stages] == [2, 4, 10]
    # LAVIS' own checkpoints lack the momentum encoder; any other gap is a fault.
    student = {k: v for k, v in state["model"].items() if "_m." not in k}
    torch.save({**state, "model": student}, tmp_path / "student.pth")
    create(arch, checkpoint=str(tmp_path / "student.pth"))
    broken = {k: v for k, v in student.items() if "blocks.3." not in k}
    assert len(broken) < len(student)
    torch.save({**state, "model": broken}, tmp_path / "broken.pth")
    with pytest.raises(DataError, match="weights missing"):
        create(arch, checkpoint=str(tmp_path / "broken.pth"))


# -- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def in_browser(path: Path, scratch: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={scratch / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_the_page(width: int, tmp_path: Path) -> None:
    path, shot = tmp_path / "page.html", tmp_path / "shot.png"
    path.write_text(to_html(example()), encoding="utf-8")
    shots = {}
    for theme, flag in (("light", "1"), ("dark", "0")):
        in_browser(path, tmp_path, f"--screenshot={shot}", f"--window-size={width},700",
                   f"--blink-settings=preferredColorScheme={flag}")  # fmt: skip
        with Image.open(shot) as image:
            shots[theme] = image.convert("RGB")
    for theme, image in shots.items():
        assert image.size[0] == width
        background = image.getpixel((2, 2))
        assert sum(background) > 700 if theme == "light" else sum(background) < 120
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
        assert (0, 255, 0) in colours  # a patch that was kept, as it is
    # The page itself does not scroll sideways: its table does, in a region of its own.
    probe = tmp_path / "probe.html"
    script = "<script>document.title = document.documentElement.scrollWidth <= innerWidth</script>"
    probe.write_text(path.read_text(encoding="utf-8") + script, encoding="utf-8")
    dom = in_browser(probe, tmp_path, "--dump-dom", f"--window-size={width},700").stdout
    assert "<title>true</title>" in dom
    assert "&lt;script&gt;alert" in dom and '<script>alert("x")' not in dom
