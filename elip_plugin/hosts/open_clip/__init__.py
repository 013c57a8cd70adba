"""OpenCLIP: `elip-X`, `elip-fast-X` and others for every model X whose ViT can be pruned."""

from __future__ import annotations

from elip_plugin.hosts.base import ListedHost


class OpenClipHost(ListedHost):
    """OpenCLIP."""

    package = __name__
    name = "open_clip"
    module = "open_clip"
    distribution = "open_clip_torch"
    install = "pip install 'elip-plugin[open-clip]'"
    oldest = (2, 32)


HOST = OpenClipHost()
