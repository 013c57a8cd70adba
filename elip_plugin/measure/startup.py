"""What the start-up file costs a Python process that has nothing to do with it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.autoload import START_FILE


@dataclass(frozen=True)
class Startup:
    """Medians over pairs of processes, and the quartiles of their difference, milliseconds."""

    plain_ms: float
    extra_ms: float
    low_ms: float
    high_ms: float


def measure_startup(python: str, *, pairs: int) -> Startup:
    """Time a Python process with the start-up file and without, in turn.

    Both run without site-packages but with one folder that `site` reads, as it reads
    site-packages: once with the installed start-up file in it, once empty.

    Args:
        python: The interpreter.
        pairs: How many pairs count, from 2 up.

    Returns:
        The times.

    Raises:
        UnsupportedModelError: If the start-up file is not installed.
    """
    installed = Path(sysconfig.get_paths()["purelib"]) / START_FILE
    if not installed.is_file():
        raise UnsupportedModelError(
            f"{START_FILE} is not installed in this environment: pip install elip-plugin"
        )
    with TemporaryDirectory() as with_file, TemporaryDirectory() as without:
        (Path(with_file) / START_FILE).write_bytes(installed.read_bytes())
        times = [(_run(python, with_file), _run(python, without)) for _ in range(pairs + 2)][2:]
    differences = sorted(1000 * (a - b) for a, b in times)
    low, middle, high = statistics.quantiles(differences, n=4)
    return Startup(1000 * statistics.median(b for _, b in times), middle, low, high)


def _run(python: str, folder: str) -> float:
    # -S leaves site out, so that nothing else that is installed is measured.
    command = [python, "-S", "-c", f"import site; site.addsitedir({folder!r})"]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    return time.perf_counter() - start
