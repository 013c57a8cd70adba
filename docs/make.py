"""Write what the docs show of the code: the reference, lists of models, the figure, the screens.

    .venv-openclip/bin/python docs/make.py    # configuration.md, reducers.md, open_clip_models.md
    .venv/bin/python docs/make.py --screens   # the figure (by matplotlib), and the screens
    .venv/bin/python docs/make.py --show PAGE # the pictures of a page of `elip show`
    .venv-openclip/bin/python docs/make.py --idea CHECKPOINT --pictures FOLDER   # README's picture

`tests/docs/test_docs.py` compares the pages with the code.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from elip_plugin.config import PRESETS, ElipConfig, Stage
from elip_plugin.planning import plan
from elip_plugin.reducers import OWN, Reducer

DOCS = Path(__file__).parent
SCREENS = DOCS / "screens"

CONFIGURATION = """# Configuration

Made by `docs/make.py` from the classes in `elip_plugin/config`. The keys are the same in Python
(`ElipConfig.from_mapping`, `elip_plugin.apply(model, {...})`), in the `elip` section of a LAVIS
model, and in that of an OpenCLIP model config. A bare string is a preset's name. One error names
every fault of a config. [Reducers](reducers.md) have options of their own.

| key | type | default | meaning |
|---|---|---|---|
| `preset` | str | `half` | a named plan, in place of `stages`: %(presets)s |
%(config)s

A stage:

| key | type | meaning |
|---|---|---|
%(stage)s

## Presets

All are written for 12 blocks (`reference_depth: 12`), and rescaled to the depth of other towers.
Keys that are not in a preset's row have their defaults. [Choose a plan](plans.md) compares them.

| preset | `reducer` | stages (block, lookahead, keep) | other keys |
|---|---|---|---|
%(presets_table)s

What they cost: tokens in the blocks of ViT-B/16 at 224 pixels, and the counted operations of its
image tower, over an unpruned one, while the plan prunes. A whole step has a text tower, too:
[several numbers for one step](plans.md#several-numbers-for-one-step).

| preset | tokens inside the blocks | forward | forward and backward |
|---|---|---|---|
%(costs_table)s
"""


def attributes(cls: type) -> dict[str, str]:
    """Read the meanings of a class' fields from its docstring."""
    text = inspect.getdoc(cls) or ""
    section = text.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.DOTALL | re.MULTILINE)
    return {name: " ".join(meaning.replace('`"', "`").replace('"`', "`").split())
            for name, meaning in entries}  # fmt: skip


def default_of(field: Field[Any]) -> str:
    """Format a field's default as YAML does."""
    if field.default is MISSING:
        return ""
    return f"`{json.dumps(field.default)}`".replace('"', "")


SOURCES = {
    "elip": "the paper, arXiv 2309.16738",
    "gumbel": "the draw: Kool et al., ICML 2019",
    "similarity": "ours; products with a text after the last norm: MaskCLIP, ECCV 2022",
    "evit": "Liang et al., ICLR 2022",
    "unique": "ours",
    "tome": "Bolya et al., ICLR 2023",
    "ward": "ours; the cost of a pair: Ward, JASA 1963",
    "random": "FLIP (one stage at block 0), Li et al., CVPR 2023",
    "cluster": "E-CLIP, Wei et al., CVPR 2024; CLIP-PGS, CVPR 2025",
    "pool": "after RECLIP and CLIPF",
}
"""Where each reducer comes from."""

STAGES = {
    "tome": "any, no `until`",
    "ward": "any, no `until`",
    "cluster": "one, at block 0, keep any",
    "pool": "one, at block 0, keep 0.25, no `until`",
}
"""Which stages a reducer may have, where not any."""


def reducer_row(cls: type[Reducer]) -> str:
    """Return a reducer's row of the table of reducers."""
    meaning = (inspect.getdoc(cls) or "").partition("\n")[0]
    text, ahead = ("yes" if answer else "no" for answer in (cls.reads_text, cls.looks_ahead))
    cells = (f"`{cls.name}`", meaning, SOURCES[cls.name], text, ahead, STAGES.get(cls.name, "any"))
    return f"| {' | '.join(cells)} |"


def reducers_page(text: str) -> str:
    """Return the page `reducers.md`, whose tables are made anew from the classes."""
    options = [
        f"| `{f.name}` | `{cls.name}` | {f.type} | {default_of(f)} | {attributes(cls)[f.name]} |"
        for cls in OWN
        for f in fields(cls)
    ]
    tables = {
        "reducers": "| `reducer` | what it does | from | reads text | looks ahead | stages |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(map(reducer_row, OWN)),
        "options": "| option | of | type | default | meaning |\n|---|---|---|---|---|\n"
        + "\n".join(options),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table}\n\n{end}{rest.split(end)[1]}"
    return text


def other_keys(config: ElipConfig) -> str:
    """Format what a preset sets beside stages and reducer, where presets differ."""
    shown = []
    for key in fields(ElipConfig):
        values = {getattr(preset, key.name) for preset in PRESETS.values()}
        value = getattr(config, key.name)
        if key.name in ("stages", "reducer") or len(values) == 1:
            continue
        if config.reducer.reads_text if key.name == "text_weight" else value != key.default:
            shown.append(f"`{key.name}: {value}`")
    return ", ".join(shown)


def configuration() -> str:
    """Return the page `configuration.md`."""
    meanings, stage = attributes(ElipConfig), attributes(Stage)
    rows = [
        f"| `{f.name}` | {str(f.type).replace('|', 'or')} | {default_of(f)} | {meanings[f.name]} |"
        for f in fields(ElipConfig)
    ]
    stages = [
        f"| `{f.name}` | {str(f.type).replace('|', 'or')} | {stage[f.name]} |"
        for f in fields(Stage)
    ]
    presets, costs = [], []
    for name, config in PRESETS.items():
        made = plan(config, num_patches=196, depth=12)
        triples = ", ".join(f"({s.block}, {s.lookahead}, {s.keep:.2f})" for s in config.stages)
        presets.append(f"| `{name}` | `{config.reducer.name}` | {triples} | {other_keys(config)} |")
        costs.append(
            f"| `{name}` | {' '.join(map(str, made.tokens))} | {made.forward_cost(768):.2f} | "
            f"{made.train_cost(768):.2f} |"
        )
    return CONFIGURATION % {
        "presets": " or ".join(f"`{name}`" for name in PRESETS),
        "config": "\n".join(rows),
        "stage": "\n".join(stages),
        "presets_table": "\n".join(presets),
        "costs_table": "\n".join(costs),
    }


def open_clip_models() -> str:
    """Return the page `open_clip_models.md`, for the installed OpenCLIP."""
    import open_clip

    from elip_plugin.hosts.open_clip.names import PREFIXES
    from elip_plugin.hosts.open_clip.support import why_not

    own = {path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
    pruned: dict[tuple[str, ...], list[str]] = {}
    refused: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        if name not in own:
            continue
        config = open_clip.get_model_config(name)
        reason = why_not(config)
        if reason is None:
            missing = [preset for preset in PREFIXES.values() if why_not(config, preset)]
            pruned.setdefault(tuple(missing), []).append(f"`{name}`")
        else:
            refused.setdefault(reason, []).append(f"`{name}`")
    text = (
        "# OpenCLIP's models\n\n"
        f"Made by `docs/make.py` from OpenCLIP {open_clip.__version__}'s own list. "
        "Each X has the names\n"
        f"{', '.join(f'`{prefix}X`' for prefix in reversed(PREFIXES))}.\n"
    )
    for missing, names in pruned.items():
        without = ", ".join(f"`{preset}`" for preset in missing)
        text += f"\n## Pruned by every plan{f' but {without}' * bool(missing)}\n\n"
        text += ", ".join(names) + ".\n"
    text += "\n## Refused\n"
    for reason, names in refused.items():
        text += f"\n- It {reason}: {', '.join(names)}.\n"
    return text


# Figure and screens.


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


def idea(checkpoint: str, pictures: list[Path]) -> None:
    """Draw which patches of a few pictures merge, by the demo's model."""
    import os

    import matplotlib

    matplotlib.use("Agg")
    os.environ["ELIP_MODEL_CONFIGS"] = str(DOCS.parent / "examples" / "models")
    from matplotlib import pyplot

    from elip_plugin.hosts.registry import create
    from elip_plugin.pictures import find_items
    from elip_plugin.visualize.drawing import draw_stage
    from elip_plugin.visualize.stages import visualize

    host_model = create("elip-half-ViT-emoji", checkpoint=checkpoint)
    made = visualize(host_model, find_items(pictures), [])
    columns = 1 + len(made.rows[0].stages)
    size = 2.1 * columns, 2.4 * len(made.rows)
    drawn, panels = pyplot.subplots(len(made.rows), columns, figsize=size, squeeze=False)
    for axes, row in zip(panels, made.rows):
        image = made.pictures[row.picture][1]
        axes[0].imshow(image)
        axes[0].set_title(f"{made.grid[0] * made.grid[1]} patches", fontsize=13)
        for panel, stage in zip(axes[1:], row.stages):
            panel.imshow(draw_stage(made.grid, image, stage))
            tokens = len(stage.kept) + len(stage.groups)
            panel.set_title(f"block {stage.block}: {tokens} tokens", fontsize=13)
        for panel in axes:
            panel.set_xticks([])
            panel.set_yticks([])
    drawn.tight_layout(pad=0.5)
    drawn.savefig(SCREENS / "idea.png", dpi=110, metadata={"Software": None})


SHOWN = {
    "models": ["models", "--host", "open_clip"],
    "plan": ["plan", "--model", "elip-half-ViT-B-16"],
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
    width = max([88, *(len(line) for line in lines if line.startswith(("┃", "│")))])
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        console.print(Text(f"$ elip {' '.join(arguments)}", style="bold"))
        console.print(Text("\n".join(lines)))
        drawn = console.export_svg(title="elip", unique_id=f"elip-{name}")
    # Rich names fonts on somebody's server; a page of ours fetches nothing.
    (SCREENS / f"{name}.svg").write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    )


def photograph(page: Path, shot: Path, width: int, height: int) -> None:
    """Save a picture of a page, as headless Chromium draws it."""
    browser = shutil.which("chromium") or "chromium-browser"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
             "--disable-background-networking", f"--window-size={width},{height}"]  # fmt: skip
    subprocess.run(
        [browser, *flags, f"--screenshot={shot}", page.resolve().as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip


def show_screens(page: Path) -> None:
    """Save pictures of a page of `elip show`, on a desktop and on a phone."""
    photograph(page, SCREENS / "show-desktop.png", 1240, 900)
    photograph(page, SCREENS / "show-phone.png", 500, 860)


def main() -> None:
    """Write the pages, or the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", action="store_true")
    parser.add_argument("--show", type=Path, help="a page of `elip show` to photograph")
    parser.add_argument("--idea", metavar="CHECKPOINT", help="weights of elip-half-ViT-emoji")
    parser.add_argument("--pictures", type=Path, nargs="+", help="pictures for --idea")
    args = parser.parse_args()
    if args.idea is not None:
        idea(args.idea, args.pictures)
    elif not args.screens and args.show is None:
        (DOCS / "configuration.md").write_text(configuration())
        page = DOCS / "reducers.md"
        page.write_text(reducers_page(page.read_text()))
        (DOCS / "open_clip_models.md").write_text(open_clip_models())
    if args.screens:
        figure(SCREENS / "method.svg")
        for name, arguments in SHOWN.items():
            screen(name, arguments)
    if args.show is not None:
        show_screens(args.show)


if __name__ == "__main__":
    main()
