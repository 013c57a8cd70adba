"""Hugging Face transformers: `hf:X` for CLIP, SigLIP and the models that share their encoder."""

from __future__ import annotations

from torch import nn

from elip_plugin.hosts.base import Host
from elip_plugin.patching.description import Description


class TransformersHost(Host):
    """The facts of transformers."""

    name = "transformers"
    module = "transformers"
    distribution = "transformers"
    install = "pip install 'elip-plugin[transformers]'"
    package = __name__
    oldest = (4, 57)
    dependency = True

    def register(self) -> None:
        """Do nothing: transformers builds models from folders and configs, not by our names."""

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; refuse all of an older transformers."""
        from elip_plugin.hosts.transformers import names

        names.check_version()
        return super().describe(module)


HOST = TransformersHost()
