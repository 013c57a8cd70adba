"""Kill -9, full disks, folders that cannot be written to, closed pipes, no home, no locale."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.stopping import forked, said_by

from benchmarks.faults.counting import is_long, tried
from elip_plugin.check.embed import fill as fill_store
from elip_plugin.check.store import Store
from elip_plugin.cli import main as cli
from elip_plugin.errors import DataError
from elip_plugin.files import UNFINISHED

ROOT = Path(__file__).parents[2]
KILLS = 60 if is_long() else 6
KEYS = [f"{i:032x}" for i in range(640)]


def rows_of(places: Any) -> np.ndarray:
    return np.stack([np.full(256, place, np.float32) for place in places])


def fill(folder: Path) -> np.ndarray:
    def batches(places: Any) -> Any:
        parts = [places[start : start + 64] for start in range(0, len(places), 64)]
        return ((part, part, {}) for part in parts)

    rows, faults = fill_store(Store(folder), KEYS, batches, rows_of, lambda _: None)
    assert not faults
    return np.array(rows)


def test_a_store_is_killed_at_random_moments(tmp_path: Path) -> None:
    """What is there afterwards is whole, and the rest is computed; nothing else is left lying."""
    expected, chance = rows_of(range(len(KEYS))), random.Random(0)
    began = time.monotonic()
    fill(tmp_path / "whole")
    whole = time.monotonic() - began
    killed = 0
    while killed < KILLS:
        folder = tmp_path / str(killed)
        child = forked(lambda folder=folder: fill(folder))
        time.sleep(chance.random() * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert np.array_equal(fill(folder), expected)
        killed += 1
    tried("kill -9 of a store of embeddings", killed)


def test_a_store_on_a_full_disk(tmp_path: Path) -> None:
    """Files end at each of some sizes: one error, and what was there stays."""
    expected = rows_of(range(len(KEYS)))
    sizes = range(0, 700_000, 23_000) if is_long() else (0, 100, 70_000, 600_000)

    def fill_little(most: int, folder: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            fill(folder)
        except DataError as error:
            if "cannot be written" in str(error):
                os._exit(3)
            raise

    for most in sizes:
        folder = tmp_path / str(most)
        child = forked(lambda most=most, folder=folder: fill_little(most, folder))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 3), (most, status)
        assert not list(folder.glob("*.unfinished"))
        assert np.array_equal(fill(folder), expected)
        tried("full disks")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (70, 64), (80 * i, 40, 90)).save(folder / f"{i}.png")
    return folder


COMMANDS = {
    "models": "models --host open_clip",
    "plan": "plan --model ViT-tiny --plan half -o {out}/plan.yaml",
    "show": "show --model elip-half-ViT-tiny --image {pictures} -o {out}/show.html",
    "version": "--version",
}
"""Commands that end within seconds; {out} is where they write."""

WRITING = {
    "plan": COMMANDS["plan"],
    "show": COMMANDS["show"],
    "speed": "bench speed --model elip-half-ViT-tiny --batch 2 --rounds 1 --passes tower -o {out}",
}

SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None, "USERPROFILE": None},
    "a home that is missing": {"HOME": "/nonexistent/home"},
    "no locale": {"LANG": None, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "an unknown locale": {"LC_ALL": "xx_YY.UTF-8"},
    "no terminal": {"TERM": None, "COLUMNS": "0"},
    "a cache that is a file": {"XDG_CACHE_HOME": "/dev/null", "TORCH_HOME": "/dev/null"},
}


def elip(words: str, env: dict[str, str | None], **options: Any) -> Any:
    here = {**os.environ, **env, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    here |= {"ELIP_MODEL_CONFIGS": str(ROOT / "tests" / "models"), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in here.items() if value is not None}
    command = [sys.executable, "-m", "elip_plugin", *words.split()]
    return subprocess.Popen(command, env=kept, stderr=subprocess.PIPE, **options)


def ended(process: Any) -> tuple[int, str]:
    _, err = process.communicate(timeout=300)
    return process.returncode, err.decode(errors="replace")


@pytest.mark.parametrize("command", ["plan", "show"] if is_long() else ["plan"])
@pytest.mark.parametrize("around", SURROUNDINGS if is_long() else ["no locale"])
def test_surroundings(around: str, command: str, tmp_path: Path, pictures: Path) -> None:
    """It does its work, and says nothing of Python."""
    pytest.importorskip("open_clip")
    words = COMMANDS[command].format(out=tmp_path, pictures=pictures)
    status, err = ended(elip(words, SURROUNDINGS[around], stdout=subprocess.DEVNULL))
    assert "Traceback" not in err, err
    assert status == 0, err
    tried("surroundings of commands")


def in_this_process(words: str) -> None:
    sys.argv = ["elip", *words.split()]
    os.environ["COLUMNS"] = "200"
    cli.main()


@pytest.mark.parametrize("command", WRITING if is_long() else ["plan", "show"])
def test_a_file_that_cannot_be_written(command: str, tmp_path: Path, pictures: Path) -> None:
    """A disk that is full from the first byte, and a folder that takes no files: one line."""
    pytest.importorskip("open_clip")

    def full(words: str) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        in_this_process(words)

    for out, run, kind in (
        (tmp_path, full, "full disks"),
        (Path("/proc/self"), in_this_process, "folders that cannot be written to"),
    ):
        words = WRITING[command].format(out=out, pictures=pictures)
        status, err = said_by(lambda words=words, run=run: run(words))
        assert status == 1 and "Traceback" not in err, err
        assert err.strip().splitlines()[-1].startswith("elip: ")
        assert {path.name for path in tmp_path.iterdir()} <= {"pictures", "pairs.json"}
        tried(kind)


@pytest.mark.parametrize("command", ["models", "version"] if is_long() else ["version"])
def test_a_pipe_that_is_closed(command: str, tmp_path: Path, pictures: Path) -> None:
    """As `elip models | head -0` does."""
    pytest.importorskip("open_clip")
    reading, writing = os.pipe()
    os.close(reading)
    words = COMMANDS[command].format(out=tmp_path, pictures=pictures)
    try:
        _, err = ended(elip(words, {}, stdout=writing))
    finally:
        os.close(writing)
    assert "Traceback" not in err and "Exception ignored" not in err, err
    tried("closed pipes")


@pytest.mark.parametrize("command", ["plan", "show"] if is_long() else ["plan"])
def test_control_c(command: str, tmp_path: Path, pictures: Path) -> None:
    """At random moments: it ends at once, and what it wrote is whole."""
    pytest.importorskip("open_clip")
    chance = random.Random(1)
    words = COMMANDS[command].format(out=tmp_path, pictures=pictures)
    for _ in range(10 if is_long() else 1):
        process = elip(words, {}, stdout=subprocess.DEVNULL)
        time.sleep(1 + 6 * chance.random())
        process.send_signal(signal.SIGINT)
        status, _err = ended(process)
        assert status in (0, 1, 130, -signal.SIGINT), status
        tried("Ctrl-C")
        assert not [*tmp_path.glob(f"*{UNFINISHED}")]
        for out in tmp_path.glob("*.yaml"):
            assert out.read_text().endswith("\n")
            out.unlink()


def test_no_result_depends_on_a_clock_that_can_go_back() -> None:
    """Nothing of the package reads the time of day; it measures by a clock that only rises."""
    source = "\n".join(path.read_text() for path in (ROOT / "elip_plugin").rglob("*.py"))
    assert "time.perf_counter()" in source
    assert not re.findall(r"\btime\.(?:time|localtime|ctime)\b|\bdatetime\b", source)
