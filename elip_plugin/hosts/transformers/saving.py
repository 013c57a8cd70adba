"""Saving a pruned model as the base model, with its plan beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elip_plugin.hosts.transformers.names import CONFIG_KEY
from elip_plugin.patching.monkeypatch import replaced
from elip_plugin.patching.named import NamedAsReplaced
from elip_plugin.patching.swap import Swap

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner


class PrunedModel(NamedAsReplaced):
    """A model that carries the pruner of its tower."""

    if TYPE_CHECKING:
        elip: Pruner

    def save_pretrained(self, *args: Any, **options: Any) -> Any:
        """Save as transformers does, with what the tower was pruned by in the config."""
        host: Any = super()
        model: Any = self
        with replaced(model.config, CONFIG_KEY, self.elip.config.to_mapping()):
            return host.save_pretrained(*args, **options)


class ModelSwap(Swap):
    """The swap of a model. A saved plan leaves its config, where it would outlast the pruning."""

    def apply(self, **attributes: Any) -> None:
        """Make the swap; saving writes the plan that is then in force."""
        super().apply(**attributes)
        config: Any = self.module.config
        vars(config).pop(CONFIG_KEY, None)
