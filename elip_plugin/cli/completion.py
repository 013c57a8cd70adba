"""Completion of model names: kept in a file, since listing them imports torch and the hosts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from elip_plugin.files import replacing

_LIST = "import elip_plugin; print('\\n'.join(elip_plugin.list_models()))"


def complete_model(incomplete: str) -> list[str]:
    """Return the pruned models' names that start as given."""
    return [name for name in model_names() if name.startswith(incomplete)]


def model_names() -> list[str]:
    """Return all pruned models' names: imports the hosts once after packages have changed."""
    file, state = _cache_file(), _state()
    with suppress(OSError):
        found, *names = file.read_text(encoding="utf-8").splitlines()
        if found == state:
            return names
    # In another process: what the hosts' libraries print must not get into the user's line.
    listed = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True)
    if listed.returncode:
        return []
    names = listed.stdout.splitlines()
    with suppress(OSError):  # a folder that cannot be written to makes completion slow, no more
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text("\n".join([state, *names]), encoding="utf-8")
    return names


def _cache_file() -> Path:
    """Return the file of this environment."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]
    return folder / "elip-plugin" / f"models-{environment}.txt"


def _state() -> str:
    """Return what changes with the installed packages and with the user's own model configs."""
    places = [sysconfig.get_paths()["purelib"], os.environ.get("ELIP_MODEL_CONFIGS", "")]
    times = [os.stat(place).st_mtime_ns if os.path.exists(place) else 0 for place in places]
    return " ".join(map(str, [*places, *times]))
