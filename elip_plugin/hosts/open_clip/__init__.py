"""OpenCLIP: `elip-X`, `elip-fast-X` and others for every model X whose ViT can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elip_plugin.hosts.base import Catalogue, Host, HostModel, ModelName
from elip_plugin.patching.description import Description


class OpenClipHost(Host, Catalogue):
    """OpenCLIP; what needs the library itself is imported when it is called."""

    name = "open_clip"
    module = "open_clip"
    distribution = "open_clip_torch"
    install = "pip install 'elip-plugin[open-clip]'"
    oldest = (2, 32)

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; see `Host`."""
        from elip_plugin.hosts.open_clip import models

        return models.describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn text features into a guide; see `Host`."""
        from elip_plugin.hosts.open_clip import guide

        return guide.text_guide(module, features)

    def register(self) -> None:
        """Add our names to OpenCLIP; see `Catalogue`."""
        from elip_plugin.hosts.open_clip import names

        names.register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        from elip_plugin.hosts.open_clip import names

        return names.list_names()

    def find(self, name: str) -> ModelName | None:
        """Find a model by name or base; see `Catalogue`."""
        from elip_plugin.hosts.open_clip import names

        return names.find(name)

    def create(self, name: str, **options: Any) -> HostModel:
        """Build a pruned model; see `Catalogue`."""
        from elip_plugin.hosts.open_clip import factory

        return factory.create(name, **options)


HOST = OpenClipHost()
