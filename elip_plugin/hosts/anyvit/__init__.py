"""Any vision transformer whose blocks are made of the usual parts, of no known host."""

from __future__ import annotations

from torch import Tensor, nn

from elip_plugin.hosts.base import PackageHost
from elip_plugin.patching.description import Description

PRESET = "embed"
"""What prunes models by name where nothing else is asked for: they have no text."""


class AnyVitHost(PackageHost):
    """Torch itself: every module is one of its classes, so it is asked where no other host is."""

    package = __name__
    name = "anyvit"
    module = distribution = "torch"
    install = "pip install torch"

    def describe(
        self, module: nn.Module, image_size: int | tuple[int, int] | None = None
    ) -> Description:
        """Describe a model or vision tower, for images of a size; see `Host`."""
        from elip_plugin.hosts.anyvit import describe

        return describe.describe(module, image_size=image_size)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Return a ready guide [B, D] of the tower's width: what maps texts to it is not known."""
        return features.detach()


HOST = AnyVitHost()
