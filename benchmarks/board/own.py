"""Reducers of your own on a board: a Python file that registers them, and their rows."""

from __future__ import annotations

import runpy
from pathlib import Path

from benchmarks.board.variants import END, STAGED_HALF, VARIANTS, Variant
from elip_plugin.reducers import reducers


def add_reducers(path: Path) -> list[str]:
    """Run a file that calls `elip_plugin.register_reducer`, and add a row for each reducer.

    A row has half of the token-layers, in the stages of "random staged, end", and an unpruned end:
    it differs from the rows of that end in what chooses alone.

    Args:
        path: The file, which is run as a script.

    Returns:
        Names of the rows, keys of `VARIANTS`.

    Raises:
        ValueError: If the file cannot be read, or registers no reducer.
    """
    try:
        found = list(runpy.run_path(str(path)).values())
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be run: {error}") from error
    own = [
        name
        for name, reducer in reducers().items()
        if any(type(reducer) is value for value in found)
    ]
    if not own:
        raise ValueError(
            f"{path} registers no reducer: decorate its class with @elip_plugin.register_reducer"
        )
    rows = {}
    for name in own:
        elip = {**STAGED_HALF, "reducer": name, **END}
        rows[f"{name} staged, end"] = Variant(
            f"half of the token-layers by {name} of {path.name}, unpruned end", elip
        )
    VARIANTS.update(rows)
    return list(rows)
