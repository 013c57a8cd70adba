"""The commands of research/faults.md: `python -m benchmarks.faults --help` lists them."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence

from benchmarks.faults import mutants, page, planted, versions
from benchmarks.faults.families import FAMILIES, run_family
from benchmarks.faults.results import (
    MUTANTS,
    environment,
    read_faults,
    read_lines,
    write_faults,
)


def run_families(args: argparse.Namespace) -> None:
    """Run families of faults, and keep their counts."""
    for family in FAMILIES:
        if args.only in family.name:
            result = run_family(family)
            write_faults({**read_faults(), family.name: result})
            print(family.name, result["tests"], result["tried"], flush=True)


def write_report(args: argparse.Namespace) -> None:
    """Print the tables, or write them into the page."""
    if args.write:
        page.write()
    else:
        print("\n\n".join(page.tables().values()))


def run_mutants(args: argparse.Namespace) -> None:
    """Test a sample of mutants, and append a row for each to the log."""
    done = {_key(row): row for row in read_lines(MUTANTS)}
    mutants.load_libraries()
    until = time.monotonic() + 60 * args.minutes
    for mutant in mutants.sample(args.sample, args.seed):
        old = done.get(_key(vars(mutant)))
        if time.monotonic() > until:
            break
        if args.path not in mutant.path or (old and (old["caught"] or not args.again)):
            continue
        tests = mutants.tests_of(mutant.path)
        killer, seconds = mutants.run(mutant, tests, all_tests=False, most_seconds=args.seconds)
        _check_unchanged(killer, False)
        done[_key(vars(mutant))] = mutants.record(mutant, killer, seconds)
        MUTANTS.write_text("".join(json.dumps(row) + "\n" for row in done.values()))
        print(f"{mutant.path}:{mutant.line} {seconds:.0f} s {killer or 'SURVIVED'}")
        if not killer:
            print(f"    {mutant.before}\n    {mutant.after}")
        sys.stdout.flush()


def _check_unchanged(killer: str, all_tests: bool) -> None:
    """Stop if the file of a test that failed has one that fails without a change."""
    file = killer.partition("::")[0].removesuffix(" (import)")
    if file.startswith("tests"):
        failed, _ = mutants.run_unchanged(file, all_tests)
        if failed:
            sys.exit(f"{failed} fails without a change, so it can tell none: repair it first")


def run_planted(args: argparse.Namespace) -> None:
    """Run the battery against faults that were put in, and keep what found each."""
    mutants.load_libraries()
    known = {row["about"]: row for row in read_faults().get("planted", {}).get("rows", [])}
    rows = []
    for fault, mutant in planted.as_mutants():
        if args.only in fault.about or fault.about not in known:
            by, _ = mutants.run(mutant, fault.tests)
            _check_unchanged(by, True)
            known[fault.about] = {"about": fault.about, "path": fault.path, "by": by}
            print(f"{fault.path}: {fault.about}: {by or 'NOT FOUND'}", flush=True)
        rows.append(known[fault.about])
    write_faults({**read_faults(), "planted": {"rows": rows, "environment": environment()}})


def try_versions(args: argparse.Namespace) -> None:
    """Run tests with the oldest and the newest versions, and keep the outcome."""
    for name in ("oldest", "newest"):
        if python := getattr(args, name):
            result = versions.try_versions(name, python)
            versions.write_versions(name, result)
            print(name, json.dumps(result, indent=1), flush=True)


def write_kept(args: argparse.Namespace) -> None:
    """Keep the answers of this version."""
    from benchmarks.faults import kept  # it imports the package, which mutants must not

    if unknown := set(args.hosts) - set(kept.HOSTS):
        sys.exit(f"hosts are {', '.join(kept.HOSTS)}, got {', '.join(sorted(unknown))}")
    for path in kept.write(args.hosts):
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("path", "operator", "before", "after"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    commands = parser.add_subparsers(required=True)
    families = commands.add_parser("run", help="try all faults, and count them")
    families.add_argument("--only", default="", help="families whose name has this")
    families.set_defaults(run=run_families)
    report = commands.add_parser("report", help="the tables of research/faults.md")
    report.add_argument("--write", action="store_true", help="into the page")
    report.set_defaults(run=write_report)
    mutate = commands.add_parser("mutants", help="test mutants of the package")
    mutate.add_argument("--sample", type=int, default=200)
    mutate.add_argument("--seed", type=int, default=0)
    mutate.add_argument("--minutes", type=float, default=600.0, help="begin none after these")
    mutate.add_argument(
        "--seconds", type=float, default=math.inf, help="of a mutant, begin no file after these"
    )
    mutate.add_argument("--path", default="", help="only of files whose path has this")
    mutate.add_argument(
        "--again",
        action="store_true",
        help="also those that survived before, by all tests of the place",
    )
    mutate.set_defaults(run=run_mutants)
    plant = commands.add_parser("planted", help="put faults in, and see whether they are found")
    plant.add_argument(
        "--only", default="", help="those that this is said of; the others as before"
    )
    plant.set_defaults(run=run_planted)
    answers = commands.add_parser("keep", help="keep what this version makes of small models")
    answers.add_argument("hosts", nargs="+", metavar="HOST")
    answers.set_defaults(run=write_kept)
    matrix = commands.add_parser("matrix", help="test the oldest and the newest versions")
    matrix.add_argument("--oldest", default="", help="the oldest Python")
    matrix.add_argument("--newest", default="", help="the newest Python")
    matrix.set_defaults(run=try_versions)
    args = parser.parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    main()
