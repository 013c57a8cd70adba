"""What a package that adds a host imports: both contracts, and the model that commands take."""

from __future__ import annotations

from elip_plugin.hosts.contracts import (
    FROM_CONFIG,
    Catalogue,
    Host,
    ModelName,
)
from elip_plugin.hosts.model import HostModel, reading, seeded
from elip_plugin.hosts.versions import installed_version

__all__ = [
    "FROM_CONFIG",
    "Catalogue",
    "Host",
    "HostModel",
    "ModelName",
    "installed_version",
    "reading",
    "seeded",
]
