"""The folder of YAML files for LAVIS' models, data sets and projects."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[3]


def configs_root() -> Path:
    """Return the folder `lavis_configs`: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "lavis_configs"
    return (inside if inside.is_dir() else PACKAGE.parent / "lavis_configs").resolve()


def find_config(path: Path) -> Path:
    """Find a run config.

    Args:
        path: A file, or the path of one of ours from `lavis_configs/` on, as the documentation
            writes it. A file in the working directory comes first.

    Returns:
        The file; the path as it is where there is none.
    """
    if path.is_file() or path.parts[:1] != ("lavis_configs",):
        return path
    ours = configs_root().parent / path
    return ours if ours.is_file() else path
