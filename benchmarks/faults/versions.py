"""The oldest and the newest versions that the metadata promise, each in a fresh environment.

`make matrix` installs them, runs tests, and keeps the outcome for research/faults.md. The oldest
are the lower bounds of pyproject.toml, so that table and metadata cannot differ.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.results import RESULTS, ROOT, environment

VERSIONS = RESULTS / "versions.json"
EXTRAS = ("open-clip", "transformers")
SHOWN = ("torch", "open_clip_torch", "timm", "transformers", "numpy", "typer")
TOOLS = ("pytest>=8", "hypothesis>=6.100", "pillow", "torchvision", "omegaconf", "scipy")
TESTS = (
    "core",
    "test_golden.py",
    "test_kept.py",
    "test_plan.py",
    "test_config.py",
    "measure/test_preview.py",
    "cli/test_help.py",
    "hosts/test_names.py",
    "hosts/test_autoload.py",
    "hosts/open_clip/test_open_clip.py",
    "hosts/transformers/test_transformers.py",
    "hosts/transformers/test_transformers_trainer.py",
)


def requirements(project: str, *, oldest: bool) -> list[str]:
    """List what pyproject.toml asks for.

    Args:
        project: The file's text.
        oldest: Whether each lower bound is taken for the version.

    Returns:
        Requirements as pip reads them.
    """
    lists = [re.search(r"^dependencies = \[(.*?)\]$", project, re.M | re.S)]
    lists += [re.search(rf"^{name} = \[(.*?)\]$", project, re.M | re.S) for name in EXTRAS]
    given = [name for found in lists if found for name in re.findall(r'"([^"]+)"', found[1])]
    return [_oldest(each) for each in given] if oldest else given


def _oldest(requirement: str) -> str:
    """Return a requirement of the lower bound, to its last digit's place: >=2.4 gives 2.4.*."""
    name, _, bounds = requirement.partition(">=")
    return f"{name}=={bounds.partition(',')[0]}.*" if bounds else requirement


def try_versions(name: str, python: str) -> dict[str, Any]:
    """Install versions into a fresh environment, and run the tests there.

    Args:
        name: "oldest" or "newest".
        python: An interpreter.

    Returns:
        The versions, and counts of tests by their outcome; what pip said if it could not install.
    """
    project = (ROOT / "pyproject.toml").read_text()
    wanted = requirements(project, oldest=name == "oldest")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        own = str(Path(folder) / "bin" / "python")
        pip = [own, "-m", "pip", "install", "-q", "--no-compile"]
        for words in ([*wanted, *TOOLS], ["--no-deps", "-e", str(ROOT)]):
            done = subprocess.run([*pip, *words], capture_output=True, text=True)
            if done.returncode:
                return {"failed": done.stderr.strip().splitlines()[-1], "environment": {}}
        return {**_run_tests(own, Path(folder)), **_versions_in(own)}


def _run_tests(python: str, folder: Path) -> dict[str, Any]:
    """Run the tests; return their counts, and the names of those that failed."""
    report = folder / "report.txt"
    files = [f"tests/{name}" for name in TESTS]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=short"]
    with report.open("w") as file:
        subprocess.run(
            [python, "-m", "pytest", *options, *files],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    text = report.read_text()
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text.splitlines()[-1])
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
    return {"tests": {kind: int(number) for number, kind in counts}, "not passed": failed}


def _versions_in(python: str) -> dict[str, Any]:
    code = (
        "import json, platform\nfrom importlib.metadata import version\n"
        f"found = {{name: version(name) for name in {SHOWN!r}}}\n"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    own = environment()
    found = json.loads(done.stdout)
    return {"environment": {"date": own["date"], "device": own["device"], **found}}


def read_versions() -> dict[str, Any]:
    """Read the outcome by name; none before the first run."""
    found: dict[str, Any] = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
    return found


def write_versions(name: str, result: dict[str, Any]) -> None:
    """Keep the outcome of a row."""
    found = {**read_versions(), name: result}
    VERSIONS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def rows() -> Iterator[list[str]]:
    """Return the rows of the page's table."""
    for name, result in sorted(read_versions().items(), reverse=True):
        about = result["environment"]
        tests = result.get("tests", {})
        wrong = sum(number for kind, number in tests.items() if kind not in ("passed", "skipped"))
        tests_of = [each.partition("::")[2] for each in result.get("not passed", ())]
        failed = sorted({f"`{each.partition('[')[0]}`" for each in tests_of})
        outcome = result.get("failed") or ", ".join(failed) or "nothing"
        yield [
            name,
            *(about.get(key, "-") for key in ("python", *SHOWN)),
            str(tests.get("passed", "-")),
            str(wrong) if tests else "-",
            outcome,
            about.get("date", "-"),
        ]
