"""Make what the docs show of the code: the reference, the figure, the tables, the screens.

    python docs/make.py            # text: configuration.md and the tables in quality.md
    python docs/make.py --screens  # also the figure and the screens

A test holds the text against the code.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from elip_plugin.config import PRESETS, ElipConfig, Stage
from elip_plugin.planning import plan
from elip_plugin.quality import board, ledger
from elip_plugin.quality.recipe import RECIPES
from elip_plugin.quality.stats import difference

DOCS = Path(__file__).parent
RESULTS, SCREENS = DOCS / "results", DOCS / "screens"

CONFIGURATION = """# Configuration

Made by `docs/make.py` from the classes in `elip_plugin/config.py`. The keys are the same in Python
(`ElipConfig.from_mapping`, `elip_plugin.apply(model, {...})`), in the `elip` section of a LAVIS
model, and in that of an OpenCLIP model config. A bare string is a preset's name. Every fault of a
config is named at once.

| key | type | default | meaning |
|---|---|---|---|
| `preset` | str | `paper` | a named plan, in place of `stages`: %(presets)s |
%(config)s

A stage:

| key | type | meaning |
|---|---|---|
%(stage)s

## Presets

For a tower of depth 12; other depths are rescaled, halves rounded up. Tokens and costs for
ViT-B/16, counted, of an unpruned tower.

| preset | stages (block, lookahead, keep) | tokens inside the blocks | forward | training step |
|---|---|---|---|---|
%(presets_table)s
"""


def attributes(cls: type) -> dict[str, str]:
    """Read the meanings of a class' fields from its docstring."""
    text = inspect.getdoc(cls) or ""
    section = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.DOTALL | re.MULTILINE)
    return {name: " ".join(meaning.replace('`"', "`").replace('"`', "`").split())
            for name, meaning in entries}  # fmt: skip


def default_of(field: Any) -> str:
    """Write a field's default as YAML does."""
    if field.default is MISSING:
        return ""
    return f"`{json.dumps(field.default)}`".replace('"', "")


def configuration() -> str:
    """Write the reference."""
    meanings, stage = attributes(ElipConfig), attributes(Stage)
    rows = [
        f"| `{f.name}` | {str(f.type).replace('|', 'or')} | {default_of(f)} | {meanings[f.name]} |"
        for f in fields(ElipConfig)
    ]
    stages = [f"| `{f.name}` | {f.type} | {stage[f.name]} |" for f in fields(Stage)]
    presets = []
    for name, config in PRESETS.items():
        made = plan(config, num_patches=196, depth=12)
        triples = ", ".join(f"({s.block}, {s.lookahead}, {s.keep:.2f})" for s in config.stages)
        presets.append(
            f"| `{name}` | {triples} | {' '.join(map(str, made.tokens))} | "
            f"{made.forward_cost(768):.2f} | {made.train_cost(768):.2f} |"
        )
    return CONFIGURATION % {
        "presets": " or ".join(f"`{name}`" for name in PRESETS),
        "config": "\n".join(rows),
        "stage": "\n".join(stages),
        "presets_table": "\n".join(presets),
    }


def lines_of(family: str) -> list[board.Line]:
    """Make a family's board from the committed results."""
    times = RESULTS / f"{family}-steps.json"
    steps = json.loads(times.read_text())["steps"] if times.exists() else {}
    results = board.select(ledger.read(RESULTS / "quality.jsonl"), RECIPES[family])
    ratios = {name: step["ratio"] for name, step in steps.items()}
    return board.make_board(results, RECIPES[family], ratios) if results else []


PAIRS = (
    ("fast", "random"),
    ("paper", "random"),
    ("fast 0.51 + finish", "random 0.51 + finish"),
    ("fast 0.51 warm + finish", "random 0.51 warm + finish"),
    ("fast 0.51 warm + finish", "fast 0.51 t=0 warm + finish"),
    ("paper", "paper shuffled"),
    ("fast", "fast shuffled"),
    ("random by caption", "random"),
    ("paper + finish", "paper"),
    ("random + finish", "random"),
)
"""What the page compares besides each variant with unpruned training."""


def pairs() -> str:
    """Write the comparisons of `PAIRS` as a table."""
    results = board.select(ledger.read(RESULTS / "quality.jsonl"), RECIPES["clip"])
    rows = ["| variant | less | seeds | MRR, points | validation loss | training loss |\n",
            "|---|---|---|---|---|---|\n"]  # fmt: skip
    for one, two in PAIRS:
        ranks, loss = (board.gap(results, one, two, score) for score in ("mrr", "loss"))
        trained = [{seed: r["losses"][-1] for seed, r in results[n].items()} for n in (one, two)]
        rows.append(
            f"| {one} | {two} | {ranks.seeds} | {board.signed(ranks, 100, 1)} | "
            f"{board.signed(loss)} | {board.signed(difference(*trained))} |\n"
        )
    return "".join(rows)


def quality(text: str) -> str:
    """Put the tables into the page, between their marks."""
    tables = {family: lambda f=family: board.markdown(lines_of(f)) for family in RECIPES}
    for name, table in {**tables, "pairs": pairs}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


# -- figure and screens


def figure(path: Path) -> None:
    """Draw the tokens inside the blocks of ViT-B/16, and the lookaheads."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"
    from matplotlib import pyplot

    drawn, panels = pyplot.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    for axes, (name, config) in zip(panels, PRESETS.items()):
        made = plan(config, num_patches=196, depth=12)
        axes.bar(range(12), [197] * 12, color="#e4e4e8", label="unpruned")
        axes.bar(range(12), made.tokens, color="#4477aa", label="inside the block")
        for place, stage in enumerate(made.stages):
            y = 207 + 14 * (place % 2)
            axes.plot(
                [stage.block - 0.4, stage.block + stage.lookahead - 0.6], [y, y], color="#d9480f",
                linewidth=3, solid_capstyle="butt", label="" if place else "looks ahead",
            )  # fmt: skip
        axes.set_title(f"{name}: {made.removed:.0%} of the token-layers gone", fontsize=10)
        axes.set_xlabel("block")
        axes.set_xticks(range(12))
    panels[0].set_ylabel("tokens")
    panels[1].legend(fontsize=8, loc="lower left")
    drawn.tight_layout()
    drawn.savefig(path, metadata={"Date": None})


SHOWN = {
    "models": ["models", "--host", "open_clip"],
    "plan": ["plan", "--model", "elip-ViT-B-16"],
    "doctor": ["doctor"],
}


def screen(name: str, arguments: list[str], most: int = 34) -> None:
    """Run a command and draw what it prints, as SVG."""
    from rich.console import Console
    from rich.text import Text

    command = [sys.executable, "-m", "elip_plugin", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    here = {
        sys.prefix: "~/.venv",
        str(DOCS.parent): "~/elip-plugin",
        str(Path.home()): "~",
        "+cpu": "",
    }
    printed = made.stdout
    for path, short in here.items():
        printed = printed.replace(path, short)
    lines = printed.splitlines()
    if len(lines) > most:
        lines = [*lines[:most], f"... and {len(lines) - most} more lines"]
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=88, file=nowhere)
        console.print(Text(f"$ elip {' '.join(arguments)}", style="bold"))
        console.print(Text("\n".join(lines)))
        drawn = console.export_svg(title="elip", unique_id=f"elip-{name}")
    # Rich names fonts on somebody's server; a page of ours fetches nothing.
    (SCREENS / f"{name}.svg").write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    )


def photograph(page: Path, shot: Path, width: int, height: int) -> None:
    """Take a picture of a page in headless Chromium."""
    browser = shutil.which("chromium") or "chromium-browser"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
             "--disable-background-networking", f"--window-size={width},{height}"]  # fmt: skip
    subprocess.run(
        [browser, *flags, f"--screenshot={shot}", page.resolve().as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip


def show_screens(page: Path) -> None:
    """Photograph a page of `elip show` on a desktop and on a phone."""
    photograph(page, SCREENS / "show-desktop.png", 1240, 900)
    photograph(page, SCREENS / "show-phone.png", 500, 860)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", action="store_true")
    parser.add_argument("--show", type=Path, help="a page of `elip show` to photograph")
    args = parser.parse_args()
    (DOCS / "configuration.md").write_text(configuration())
    page = DOCS / "quality.md"
    if page.exists():
        page.write_text(quality(page.read_text()))
    if args.screens:
        figure(SCREENS / "method.svg")
        for name, arguments in SHOWN.items():
            screen(name, arguments)
    if args.show:
        show_screens(args.show)


if __name__ == "__main__":
    main()
