"""Data sets that need no download hub; public names: `write_openmoji`, `OpenMojiSet`."""

from __future__ import annotations

from elip_plugin.data.openmoji import OpenMojiSet, write_openmoji

__all__ = ["OpenMojiSet", "write_openmoji"]
