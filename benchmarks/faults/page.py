"""Writes the tables of research/faults.md from the result files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.faults import versions
from benchmarks.faults.families import FAMILIES
from benchmarks.faults.results import (
    EXPLAINED,
    MUTANTS,
    RESULTS,
    ROOT,
    read_faults,
    read_lines,
)
from benchmarks.tables import fill, markdown

PAGE = ROOT / "research" / "faults.md"
PICTURE = "faults-memory.svg"


def tables() -> dict[str, str]:
    """Write all tables.

    Returns:
        Tables in Markdown by their marks.
    """
    found = read_faults()
    made = {"families": _families(found), "tried": _tried(found), "sqnr": _sqnr(found)}
    made["planted"] = _planted(found)
    made["environment"], made["memory"] = _environment(found), _memory(found)
    made |= _mutants(read_lines(MUTANTS))
    made["versions"] = _versions()
    return made


def write() -> None:
    """Write the tables into the page, and draw the memory."""
    PAGE.write_text(fill(PAGE.read_text(), tables()))
    draw_memory(_curves(read_faults()))


def _versions() -> str:
    rows = [*versions.rows()]
    names = ("versions", "Python", *versions.SHOWN, "passed", "failed", "what failed", "date")
    return markdown(names, rows) if rows else "Not run yet.\n"


def _curves(found: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    measured = found.get("other people's code", {}).get("measured", {})
    return {name: curve for name, curve in measured.items() if name.startswith("memory/")}


def _memory(found: Mapping[str, Any]) -> str:
    curves = _curves(found)
    if not curves:
        return "Not measured yet.\n"
    most = max(max(curve) - curve[len(curve) // 10] for curve in curves.values())
    return f"![Resident memory](../docs/results/{PICTURE})\n\nMost growth: {most:.1f} MB.\n"


def draw_memory(curves: Mapping[str, Sequence[float]]) -> None:
    """Draw the resident memory of a process over its repetitions.

    Args:
        curves: Megabytes, at even distances over ten thousand repetitions, by name.
    """
    if not curves:
        return
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"  # the same bytes for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 2.6))
    for name, curve in curves.items():
        times = [10_000 * i / (len(curve) - 1) for i in range(len(curve))]
        axes.plot(times, curve, label=name.removeprefix("memory/"))
    axes.set_xlabel("times")
    axes.set_ylabel("resident memory, MB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(RESULTS / PICTURE, metadata={"Date": None})
    pyplot.close(figure)


def _families(found: Mapping[str, Any]) -> str:
    rows = []
    for family in FAMILIES:
        result = found.get(family.name)
        if result is None:
            rows.append((family.name, family.lost, "not run", "-", "-"))
            continue
        tests, tried = result["tests"], sum(result["tried"].values())
        failed = tests.get("failed", 0)
        lost = "nothing" if not failed else f"{failed} tests failed"
        rows.append(
            (family.name, family.lost, f"{tried:,}" if tried else "-",
             f"{tests.get('passed', 0)}", lost)
        )  # fmt: skip
    return markdown(("family", "what could be lost", "tried", "tests passed", "lost"), rows)


def _tried(found: Mapping[str, Any]) -> str:
    rows = [
        (family.name, kind, f"{number:,}")
        for family in FAMILIES
        for kind, number in sorted(found.get(family.name, {}).get("tried", {}).items())
    ]
    return markdown(("family", "what was tried", "number"), rows)


def _sqnr(found: Mapping[str, Any]) -> str:
    values: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in found.get("numbers", {}).get("measured", {}).items():
        kind, *rest = name.split("/")
        if kind == "sqnr":
            host, reducer, precision = rest
            values.setdefault((host, reducer), {})[precision] = value
    precisions = sorted({precision for row in values.values() for precision in row})
    rows = [
        (*key, *(f"{row[precision]:.0f}" for precision in precisions))
        for key, row in values.items()
    ]
    return markdown(("host", "reducer", *precisions), rows)


def _planted(found: Mapping[str, Any]) -> str:
    rows = found.get("planted", {}).get("rows", [])
    table = markdown(
        ("fault", "put into", "found by"),
        ((row["about"], f"`{row['path']}`", _test(row["by"])) for row in rows),
    )
    if not rows:
        return "Not run yet.\n"
    number = sum(bool(row["by"]) for row in rows)
    return f"Found: {number} of {len(rows)}.\n\n{table}"


def _test(name: str) -> str:
    return f"`{name.rpartition('/')[2]}`" if name else "**not found**"


def _environment(found: Mapping[str, Any]) -> str:
    rows = []
    for family in FAMILIES:
        if family.name in found:
            own = found[family.name]["environment"]
            others = (f"{k} {v}" for k, v in own.items() if k not in ("device", "date"))
            rows.append((family.name, own["date"], own["device"], ", ".join(others)))
    return markdown(("family", "date", "device", "versions"), rows)


def _mutants(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    rows = list(rows)
    if not rows:
        return {"mutants": "Not run yet.\n", "survivors": "Not run yet.\n"}
    explained = {_place(row): row["why"] for row in json.loads(EXPLAINED.read_text())}
    lines = []
    for part, own in _by_part(rows).items():
        left = [row for row in own if not row["caught"]]
        known = sum(_place(row) in explained for row in left)
        lines.append((part, *_counts(len(own), len(left), known)))
    left = [row for row in rows if not row["caught"]]
    known = sum(_place(row) in explained for row in left)
    lines.append(("**all**", *_counts(len(rows), len(left), known)))
    header = ("part", "mutants", "caught", "survived", "of which explained", "caught, 95% interval")
    survivors = markdown(
        ("where", "line", "becomes", "why no test can or does tell"),
        (
            (f"`{row['path']}`", _code(row["before"]), _code(row["after"]),
             explained.get(_place(row), "**not explained**"))
            for row in sorted(left, key=_place)
        ),
    )  # fmt: skip
    return {"mutants": markdown(header, lines), "survivors": survivors}


def _counts(number: int, left: int, known: int) -> tuple[str, ...]:
    low, high = wilson(number - left, number)
    share = f"{(number - left) / number:.0%} ({low:.0%} to {high:.0%})"
    return str(number), str(number - left), str(left), str(known), share


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Compute the 95% interval of a share (Wilson's).

    Args:
        hits: How many.
        number: Of how many.

    Returns:
        Its ends, 0 to 1.
    """
    from scipy import stats

    found = stats.binomtest(hits, number).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _by_part(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["path"].partition("/")[0].removesuffix(".py"), []).append(row)
    return dict(sorted(parts.items()))


def _place(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["path"], row["before"], row["after"]


def _code(line: str) -> str:
    return "`" + line.replace("|", "\\|") + "`"
