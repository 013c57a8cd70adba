"""Hugging Face transformers: `hf:FOLDER` for CLIP, SigLIP, BLIP and what shares their encoders."""

from __future__ import annotations

from torch import Tensor, nn

from elip_plugin.hosts.base import PackageHost


class TransformersHost(PackageHost):
    """Transformers."""

    package = __name__
    name = "transformers"
    module = "transformers"
    distribution = "transformers"
    install = "pip install 'elip-plugin[transformers]'"
    oldest = (4, 57)
    dependency = True

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn text features into a guide, as this kind of model does; see `Host`."""
        return self._part("models").text_guide(module, features)


HOST = TransformersHost()
