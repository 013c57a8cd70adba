"""The report of a sweep: one Markdown file, and pictures of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elip_plugin.errors import ElipError
from elip_plugin.measure.parts import Parts, describe_parts
from elip_plugin.measure.speed import Row
from elip_plugin.measure.sweep import DONE, Outcome, Sweep

COLORS = ("#777777", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")


def write_report(sweep: Sweep, outcomes: Mapping[str, Outcome], folder: Path) -> Path:
    """Write report.md and its pictures.

    Args:
        sweep: What was measured.
        outcomes: What was found.
        folder: Where to write.

    Returns:
        The report's path.

    Raises:
        ElipError: If matplotlib is not installed.
    """
    speeds = {
        name: [Row(**row) for row in outcome.result["rows"]]
        for name, outcome in outcomes.items()
        if outcome.status == DONE and "rows" in outcome.result
    }
    lines = [f"# {sweep.model} on {_device(sweep, outcomes)}", "", *_about(sweep, outcomes)]
    if speeds:
        _draw_speeds(speeds, _memory_name(speeds, outcomes), folder / "speed.png")
        lines += ["", "## Training step", "", *_step_table(speeds, outcomes)]
        lines += ["", "![time and memory of a step](speed.png)"]
    lines += _parts(speeds, outcomes)
    lines += _memory(outcomes)
    scaling = _scaling(outcomes)
    if scaling:
        _draw_scaling(scaling, folder / "scaling.png")
        lines += ["", "## Several processes", "", *_scaling_table(scaling)]
        lines += ["", "![pairs per second](scaling.png)"]
    lines += ["", "## What was run", "", *_outcome_table(outcomes)]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _device(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> str:
    """Return the names of the GPUs, or of the processor."""
    names = outcomes["device"].result.get("names") or []
    if names:
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())
    settings = [o.result["setting"] for o in outcomes.values() if "setting" in o.result]
    return settings[0]["device"] if settings else sweep.device


def _about(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[str]:
    device = outcomes["device"].result
    memory = [f"{size / 2**30:.0f} GiB" for size in device.get("memory") or []]
    settings = [o.result["setting"] for o in outcomes.values() if "setting" in o.result]
    pixels = f", {settings[0]['image_size']} px" if settings else ""
    parts = [
        f"Batch {sweep.batch} per process{pixels}, random weights; medians of {sweep.rounds} "
        "rounds in which the variants take turns, after 2 that do not count.",
        f"torch {device.get('torch')}, CUDA {device.get('cuda')}"
        + (f", {', '.join(memory)}." if memory else "."),
    ]
    return [" ".join(parts)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _step_table(speeds: Mapping[str, Sequence[Row]], outcomes: Mapping[str, Outcome]) -> list[str]:
    head = ["", "variant", "time", "of the first (lowest to highest)", "operations"]
    head.append(_memory_name(speeds, outcomes))
    rows = []
    for name, measured in speeds.items():
        steps = [row for row in measured if row.measured == "step"]
        for row in steps:
            base = steps[0]
            rows.append(
                [
                    name if row is base else "",
                    row.variant,
                    _seconds(row.seconds),
                    f"{row.ratio:.3f} ({row.low:.2f} to {row.high:.2f})",
                    f"{row.flops / base.flops:.3f}" if base.flops else "-",
                    f"{row.memory / 2**20:.1f} MiB" if row.memory else "-",
                ]
            )
    return _table(head, rows)


def _memory_name(speeds: Mapping[str, Sequence[Row]], outcomes: Mapping[str, Outcome]) -> str:
    """Return what a row's memory is; see `Row`."""
    on_gpu = any(outcomes[name].result["setting"]["on_gpu"] for name in speeds)
    return "peak memory" if on_gpu else "kept for backward"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _parts(speeds: Mapping[str, Sequence[Row]], outcomes: Mapping[str, Outcome]) -> list[str]:
    lines = []
    for name, rows in speeds.items():
        given = outcomes[name].result.get("parts")
        if given is not None:
            lines += [f"- {name}: {' '.join(describe_parts(rows, Parts(**given)))}"]
    loaded = any((o.result.get("parts") or {}).get("loader") for o in outcomes.values())
    if lines and not loaded:
        lines.append("- The loader was not measured: no `--data` was given.")
    return ["", "## Where the time goes", "", *lines] if lines else []


def _memory(outcomes: Mapping[str, Outcome]) -> list[str]:
    found = [o.result for o in outcomes.values() if "fits" in o.result]
    if not found:
        return []
    budget, fits = found[0]["budget"], found[0]["fits"]
    rows = [
        [
            fit["variant"],
            str(fit["batch"]) if fit["measured"] else "-",
            str(fit["predicted"]),
            f"{fit['per_pair'] / 2**20:.1f} MiB",
        ]
        for fit in fits
    ]
    title = f"## Largest batch in {budget / 2**30:.1f} GiB, {found[0]['precision']}"
    head = ["variant", "tried out, to an eighth", "predicted by `elip plan`", "each pair"]
    return ["", title, "", *_table(head, rows)]


def _scaling(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    found = [o.result for o in outcomes.values() if "processes" in o.result]
    return sorted(found, key=lambda result: result["processes"])


def _scaling_table(scaling: Sequence[Mapping[str, Any]]) -> list[str]:
    variants = list(scaling[0]["seconds"])
    rows = [
        [
            str(found["processes"]),
            *(_seconds(found["seconds"][name]) for name in variants),
            f"{found['processes'] * found['batch'] / min(found['seconds'].values()):.1f}",
        ]
        for found in scaling
    ]
    head = ["processes", *(f"step, {name}" for name in variants), "most pairs per second"]
    return [
        "DistributedDataParallel, bf16, the same batch in each process; the loss is each process' "
        "own, features are not gathered; variants one after the other.",
        "",
        *_table(head, rows),
    ]


def _outcome_table(outcomes: Mapping[str, Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes.values():
        last = outcome.message.strip().splitlines()[-1:] or [""]
        about = last[0].replace("|", "/")
        rows.append([outcome.name, outcome.status, f"{outcome.seconds:.0f} s", about])
    return _table(["measurement", "outcome", "took", "message"], rows)


def _plots() -> Any:
    """Return matplotlib's pyplot, drawing to files."""
    try:
        import matplotlib
    except ImportError as error:
        raise ElipError(
            "the report's pictures need matplotlib: pip install matplotlib, then run the same "
            "command again; the measurements are kept"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw_speeds(speeds: Mapping[str, Sequence[Row]], memory: str, path: Path) -> None:
    """Draw each step's time over the unpruned one, and its memory."""
    plots = _plots()
    steps = {name: [r for r in rows if r.measured == "step"] for name, rows in speeds.items()}
    variants = [row.variant for row in next(iter(steps.values()))]
    figure, (left, right) = plots.subplots(1, 2, figsize=(11, 1.2 + 0.8 * len(steps)), sharey=True)
    height = 0.8 / len(variants)
    for i, variant in enumerate(variants):
        rows = [row for measured in steps.values() for row in measured if row.variant == variant]
        at = [j + (i - (len(variants) - 1) / 2) * height for j in range(len(rows))]
        ratios = [row.ratio for row in rows]
        spread = [[r.ratio - r.low for r in rows], [r.high - r.ratio for r in rows]]
        color = COLORS[i % len(COLORS)]
        left.barh(at, ratios, height * 0.9, xerr=spread, color=color, label=variant, ecolor="#333")
        right.barh(at, [row.memory / 2**20 for row in rows], height * 0.9, color=color)
    left.axvline(1, color="#333", linewidth=0.8)
    left.set_yticks(range(len(steps)), list(steps))
    left.invert_yaxis()
    left.set_xlabel(f"time of a step over {variants[0]}'s, median and spread of the rounds")
    right.set_xlabel(f"{memory} of a step, MiB")
    figure.legend(loc="outside upper center", ncols=len(variants), frameon=False)
    _save(figure, path)


def _draw_scaling(scaling: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw pairs per second over the number of processes."""
    plots = _plots()
    figure, axes = plots.subplots(figsize=(6, 4))
    counts = [found["processes"] for found in scaling]
    for i, variant in enumerate(scaling[0]["seconds"]):
        rates = [f["processes"] * f["batch"] / f["seconds"][variant] for f in scaling]
        color = COLORS[i % len(COLORS)]
        axes.plot(counts, rates, "o-", color=color, label=variant)
        ideal = [rates[0] * count / counts[0] for count in counts]
        axes.plot(counts, ideal, ":", color=color, linewidth=1)
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("processes (dotted: in proportion to them)")
    axes.set_ylabel("pairs per second")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.set_layout_engine("constrained")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    figure.clear()
