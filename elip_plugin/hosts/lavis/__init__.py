"""LAVIS: `elip_X` for each ALBEF, BLIP and CLIP arch X."""

from __future__ import annotations

from collections.abc import Mapping

from elip_plugin.hosts.base import ModelName, PackageHost
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.hosts.versions import installed_version


class LavisHost(PackageHost):
    """LAVIS."""

    package = __name__
    name = "lavis"
    module = "lavis"
    distribution = "salesforce-lavis"
    install = "pip install 'elip-plugin[lavis]'"
    oldest = (1, 0)

    def prepare(self) -> None:
        """Put back what LAVIS needs and newer libraries lack; see `Host`."""
        fixes.apply("import")

    def import_advice(self) -> str:
        """Return the command to try where LAVIS is installed and does not import."""
        if installed_version("transformers") >= (5, 0):
            return "pip install 'transformers<5'"
        if installed_version("timm") < (1, 0):
            return "pip install 'numpy<2'"  # the opencv that LAVIS pins needs it
        return self.install

    def register(self) -> None:
        """Make the names known to LAVIS' registry."""
        self._part("names").register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        return self._part("names").list_names()


HOST = LavisHost()
