"""Any vision transformer whose blocks are made of the usual parts, of no known host."""

from __future__ import annotations

from torch import Tensor, nn

from elip_plugin.hosts.base import Host
from elip_plugin.patching.description import Description


class AnyVitHost(Host):
    """Torch itself: every module is one of its classes, so it is asked where no other host is."""

    name = "anyvit"
    module = distribution = "torch"
    install = "pip install torch"

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; see `Host`."""
        from elip_plugin.hosts.anyvit import describe

        return describe.describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Return a ready guide [B, D] of the tower's width: what maps texts to it is not known."""
        return features.detach()


HOST = AnyVitHost()
