"""LAVIS: `elip_X` for each ALBEF, BLIP and CLIP arch X."""

from __future__ import annotations

from elip_plugin.hosts.base import ListedHost
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.hosts.versions import installed_version


class LavisHost(ListedHost):
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


HOST = LavisHost()
