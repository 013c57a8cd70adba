"""Hugging Face transformers: `hf:FOLDER` for CLIP, SigLIP, BLIP and what shares their encoders."""

from __future__ import annotations

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


HOST = TransformersHost()
