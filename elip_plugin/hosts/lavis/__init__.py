"""LAVIS: `elip_X` for each ALBEF, BLIP, BLIP-2 and CLIP arch X."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elip_plugin.hosts.base import Catalogue, Host, HostModel, ModelName, installed_version
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.patching.description import Description


class LavisHost(Host, Catalogue):
    """LAVIS; what needs the library itself is imported when it is called."""

    name = "lavis"
    module = "lavis"
    distribution = "salesforce-lavis"
    install = "pip install 'elip-plugin[lavis]'"
    oldest = (1, 0)

    def prepare(self) -> None:
        """Put back what LAVIS needs and newer libraries lack; see `Host`."""
        fixes.prepare()

    def import_advice(self) -> str:
        """Return the command to try where LAVIS is installed and does not import."""
        if installed_version("transformers") >= (5, 0):
            return "pip install 'transformers<5'"
        if installed_version("timm") < (1, 0):
            return "pip install 'numpy<2'"  # the opencv that LAVIS pins needs it
        return self.install

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; see `Host`."""
        from elip_plugin.hosts.lavis import models

        return models.describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn text features into a guide; see `Host`."""
        from elip_plugin.hosts.lavis import guide

        return guide.text_guide(module, features)

    def register(self) -> None:
        """Register our models, runner and data sets; see `Catalogue`."""
        from elip_plugin.hosts.lavis import names

        names.register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        from elip_plugin.hosts.lavis import names

        return names.list_names()

    def find(self, name: str) -> ModelName | None:
        """Find a model by arch, type or base; see `Catalogue`."""
        from elip_plugin.hosts.lavis import names

        return names.find(name)

    def create(self, name: str, **options: Any) -> HostModel:
        """Build a pruned model; see `Catalogue`."""
        from elip_plugin.hosts.lavis import factory

        return factory.create(name, **options)


HOST = LavisHost()
