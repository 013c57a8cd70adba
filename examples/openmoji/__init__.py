"""About 3,950 pairs of an emoji and its English name, from packages of the index alone."""

from __future__ import annotations

from examples.openmoji.writing import OpenMojiSet, write_openmoji

__all__ = ["OpenMojiSet", "write_openmoji"]
