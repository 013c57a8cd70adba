"""Hugging Face transformers: `hf:X` for CLIP, SigLIP, BLIP and models that share their encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from elip_plugin.hosts.base import Catalogue, Host, HostModel, ModelName
from elip_plugin.patching.description import Description


class TransformersHost(Host, Catalogue):
    """Transformers; what needs the library itself is imported when it is called."""

    name = "transformers"
    module = "transformers"
    distribution = "transformers"
    install = "pip install 'elip-plugin[transformers]'"
    oldest = (4, 57)
    dependency = True

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; see `Host`."""
        from elip_plugin.hosts.transformers import models

        return models.describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn text features into a guide; see `Host`."""
        from elip_plugin.hosts.transformers import models

        return models.text_guide(module, features)

    def register(self) -> None:
        """Do nothing: transformers builds models from folders and configs, not by our names."""

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        from elip_plugin.hosts.transformers import names

        return names.list_names()

    def find(self, name: str) -> ModelName | None:
        """Find a model by name or base, or a folder; see `Catalogue`."""
        from elip_plugin.hosts.transformers import names

        return names.find(name)

    def create(self, name: str, **options: Any) -> HostModel:
        """Build a pruned model; see `Catalogue`."""
        from elip_plugin.hosts.transformers import factory

        return factory.create(name, **options)


HOST = TransformersHost()
