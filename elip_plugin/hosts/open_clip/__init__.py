"""OpenCLIP: `elip-X` and `elip-fast-X` for every model X whose ViT can be pruned."""

from __future__ import annotations

from elip_plugin.hosts.base import Host, ModelName


class OpenClipHost(Host):
    """OpenCLIP's facts."""

    name = "open_clip"
    module = "open_clip"
    distribution = "open_clip_torch"
    install = "pip install 'elip-plugin[open-clip]'"
    package = __name__
    oldest = (2, 32)

    def find(self, name: str) -> ModelName | None:
        """Find a model by name or base; refuse one that cannot be pruned with the reason."""
        from elip_plugin.hosts.open_clip import names

        return names.find(name)


HOST = OpenClipHost()
