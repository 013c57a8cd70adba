"""What the start-up file costs a Python process that has nothing to do with it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.autoload import START_FILE


def measure_startup(python: str, *, pairs: int) -> tuple[float, list[float]]:
    """Time a Python process with the start-up file and without, in turn."""
    installed = Path(sysconfig.get_paths()["purelib"]) / START_FILE
    if not installed.is_file():
        raise UnsupportedModelError(
            f"{START_FILE} is not installed in this environment: pip install elip-plugin"
        )
    with TemporaryDirectory() as with_file, TemporaryDirectory() as without:
        (Path(with_file) / START_FILE).write_bytes(installed.read_bytes())
        times = [(_run(python, with_file), _run(python, without)) for _ in range(pairs + 2)][2:]
    differences = [1000 * (a - b) for a, b in times]
    plain = 1000 * statistics.median(b for _, b in times)
    return plain, statistics.quantiles(differences, n=4)


def _run(python: str, folder: str) -> float:
    # -S leaves site out, so that nothing else that is installed is measured.
    command = [python, "-S", "-c", f"import site; site.addsitedir({folder!r})"]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    return time.perf_counter() - start
