"""Data that needs no download hub; public: `write_openmoji`, `OpenMojiSet`, `write_vocab`."""

from __future__ import annotations

from elip_plugin.data.openmoji import OpenMojiSet, write_openmoji
from elip_plugin.data.vocab import write_vocab

__all__ = ["OpenMojiSet", "write_openmoji", "write_vocab"]
