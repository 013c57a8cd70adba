"""The docs say what the code says; their snippets run; the errors they name are real."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from entry_points import installed_package
from scripts import load

from benchmarks.machine import found
from elip_plugin import reducers

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("research/*.md")),
]
SNIPPETS = [
    pytest.param(page, code, id=f"{page.stem}: {code.strip().splitlines()[0]}-{place}")
    for page in PAGES
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.fixture
def package(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the files that a page shows (`# name.py`), with their entry point."""
    monkeypatch.setattr(reducers, "_registered", {})
    text = page.read_text()
    for name, code in re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    entries = re.findall(r'```toml\n\[project.entry-points."(.*?)"\]\n(\w+) = "(.*?)"', text)
    with ExitStack() as stack:
        for group, name, place in entries:
            stack.enter_context(installed_package(tmp_path, name, group, place))
        yield
    reducers.reducers.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_snippet(page: Path, code: str, package: None) -> None:
    pytest.importorskip("open_clip")
    if "peft" in code:
        pytest.importorskip("peft")
    if page.stem in ("transformers", "adapters"):  # LAVIS pins an older one
        pytest.importorskip("transformers", minversion="4.57")
    # As Python runs the code: without this file's future imports.
    exec(compile(code, page.name, "exec", dont_inherit=True), {"__name__": "snippet"})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 8


def test_the_configuration_reference_is_current() -> None:
    """Write it anew with `python docs/make.py`."""
    make = load("docs/make.py")
    assert (ROOT / "docs" / "configuration.md").read_text() == make.configuration()
    text = (ROOT / "docs" / "reducers.md").read_text()
    assert text == make.reducers_page(text)
    assert "| `tome` | Merge similar tokens" in text and "| `choice_loss` |" in text


def test_the_list_of_openclip_models_is_current() -> None:
    open_clip = pytest.importorskip("open_clip")
    written = (ROOT / "docs" / "open_clip_models.md").read_text()
    if f"OpenCLIP {open_clip.__version__}'s" not in written:
        pytest.skip("the list was written for another release of OpenCLIP")
    assert written == load("docs/make.py").open_clip_models()


def test_the_table_of_other_libraries_models_names_all() -> None:
    """Write it anew with `python -m benchmarks.machine.found`."""
    page = (ROOT / "research" / "anyvit.md").read_text().split("<!-- end found -->")[0]
    rows = [row[2:-2].split(" | ") for row in page.splitlines() if row.startswith("| ")][2:]
    assert [row[0] for row in rows] == list(found.MODELS)
    done = [row for row in rows if not row[1].startswith("refused: ")]
    assert len(done) >= 15
    assert all(float(row[2]) < 1e-10 and float(row[4]) < 1e-4 for row in done)


def test_every_page_is_in_the_menu_and_on_the_start_page() -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README"}
    assert pages == set(
        re.findall(r"^   ([\w.]+)$", (ROOT / "docs" / "index.rst").read_text(), re.M)
    )
    assert pages <= set(re.findall(r"\(([\w.]+)\.md\)", (ROOT / "docs" / "README.md").read_text()))


def anchors_of(page: Path) -> set[str]:
    """The anchors that a git host, and MyST, give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_and_pictures_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "examples" / "README.md"]:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#\s]*)#?([\w-]*)\)", text)
        links += [(source, "") for source in re.findall(r'<img src="([^"]+)"', text)]
        for target, anchor in links:
            if target.startswith("http"):
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors_of(path), f"{page.name}: {target}#{anchor}"


def test_the_errors_in_troubleshooting_are_the_codes_own() -> None:
    sources = (path.read_text() for path in (ROOT / "elip_plugin").rglob("*.py"))
    # Strings are split over lines: without quotes and line ends they are whole.
    code = re.sub(r'["\s]+f?(?=")|["\n]', "", " ".join(sources))
    code = re.sub(r"\s+", "", code.replace("'", ""))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    named = [text for text in re.findall(r"^\*\*`(.+)`\*\*$", page, re.MULTILINE)]
    assert len(named) >= 12
    for text in named:
        for part in re.split(r"\.\.\.|\d+|elip-plugin|open_clip|SGD|, ", text):
            bare = re.sub(r"\s+", "", part.replace("'", ""))
            if len(bare) > 12:
                assert bare in code, f"{text!r}: {part!r}"


def test_make_targets_exist() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def test_config_sections_in_the_docs_are_valid() -> None:
    from elip_plugin import ElipConfig

    sections = 0
    for page in PAGES:
        for kind, text in re.findall(r"```(json|yaml)\n(.*?)```", page.read_text(), re.DOTALL):
            omegaconf = pytest.importorskip("omegaconf")
            values = json.loads(text) if kind == "json" else omegaconf.OmegaConf.create(text)
            section = values.get("elip", (values.get("model") or {}).get("elip"))
            ElipConfig.from_mapping(section)
            sections += 1
    assert sections >= 2
