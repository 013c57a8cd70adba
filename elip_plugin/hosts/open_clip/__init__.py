"""OpenCLIP: `elip-X`, `elip-fast-X` and others for every model X whose ViT can be pruned."""

from __future__ import annotations

from collections.abc import Mapping

from elip_plugin.hosts.base import ModelName, PackageHost


class OpenClipHost(PackageHost):
    """OpenCLIP."""

    package = __name__
    name = "open_clip"
    module = "open_clip"
    distribution = "open_clip_torch"
    install = "pip install 'elip-plugin[open-clip]'"
    oldest = (2, 32)

    def register(self) -> None:
        """Make the names known to OpenCLIP."""
        self._part("names").register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        return self._part("names").list_names()


HOST = OpenClipHost()
