"""Hugging Face transformers: `hf:X` for CLIP, SigLIP and the models that share their encoder."""

from __future__ import annotations

from elip_plugin.hosts.contracts import PackageHost


class TransformersHost(PackageHost):
    """Transformers."""

    package = __name__
    name = "transformers"
    module = "transformers"
    distribution = "transformers"
    install = "pip install 'elip-plugin[transformers]'"
    oldest = (4, 57)
    dependency = True

    def register(self) -> None:
        """Do nothing: transformers builds models from folders and configs, not by our names."""


HOST = TransformersHost()
