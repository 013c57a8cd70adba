"""The folder of YAML files for LAVIS' models, data sets and projects."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[3]


def configs_root() -> Path:
    """Return the folder `lavis_configs`: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "lavis_configs"
    return (inside if inside.is_dir() else PACKAGE.parent / "lavis_configs").resolve()
