"""Hosts by name, and the names of the pruned models they offer."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from typing import Any, Protocol

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import MissingHostError, UnknownModelError, UnsupportedModelError
from elip_plugin.hosts import autoload
from elip_plugin.patching.pruner import Pruner


class Host(Protocol):
    """What the package of a host offers; see `elip_plugin/hosts/open_clip`."""

    def patch(self, module: nn.Module, config: ElipConfig) -> Pruner:
        """Patch a model or tower in place; all checks before the first change."""

    def pruner_of(self, module: nn.Module) -> Pruner:
        """Find the pruner of a patched module."""

    def to_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn a user's guide into the tower's, [B, D], detached."""

    def register(self) -> None:
        """Make the pruned models known to the host, by name; safe to repeat."""

    def variants(self) -> dict[str, Variant]:
        """List the pruned models by name."""

    def preview(self, name: str, config: ElipConfig | None, image_size: int | None) -> Pruner:
        """Prune a model that has shapes but no weights."""

    def subject(
        self, name: str, *, batch: int, image_size: int | None, device: str, precision: Any
    ) -> Any:
        """Make an `elip_plugin.measure.subject.Subject` of a model, to measure."""

    def trial(self, recipe: Any, captions: list[str], others: list[str]) -> Any:
        """Make an `elip_plugin.quality.trial.Trial`, to train and score."""

    def sight(self, name: str, checkpoint: str, config: ElipConfig | None) -> Any:
        """Make an `elip_plugin.visualize.sight.Sight` of a model, to look through."""


@dataclass(frozen=True)
class Variant:
    """A pruned model that a host can build by name.

    Attributes:
        name: Its name, as the host knows it.
        host: The host's name.
        base: Name of the model it prunes.
        factory: The host's own way to build a model from a name.
        plan: What it prunes by, unless its config says otherwise: a preset's name, or "own".
    """

    name: str
    host: str
    base: str
    factory: Callable[..., nn.Module]
    plan: str

    def create(self, **options: Any) -> nn.Module:
        """Build the model.

        Args:
            **options: What the host's factory takes besides the name.

        Returns:
            The pruned model.
        """
        return self.factory(self.name, **options)


@dataclass(frozen=True)
class _HostEntry:
    package: str  # our folder for it
    module: str  # its own top-level module
    extra: str  # what to install
    distribution: str = ""  # its name on the package index


HOSTS = {
    "open_clip": _HostEntry(
        "elip_plugin.hosts.open_clip", "open_clip", "open-clip", "open_clip_torch"
    ),
    "lavis": _HostEntry("elip_plugin.hosts.lavis", "lavis", "lavis", "salesforce-lavis"),
}


def load_host(name: str) -> Host:
    """Import the code for a host, and with it the host.

    Args:
        name: A key of `HOSTS`.

    Returns:
        The host's package.

    Raises:
        UnknownModelError: If there is no such host.
        MissingHostError: If the host library is not installed.
    """
    if name not in HOSTS:
        raise UnknownModelError(f"host {name!r} is not known; hosts are {sorted(HOSTS)}")
    entry = HOSTS[name]
    try:
        if importlib.util.find_spec(entry.module) is not None:
            autoload.prepare(entry.module)  # where autoload is switched off, nobody else has
        importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        if error.name != entry.module:
            raise
        raise MissingHostError(
            f"{entry.module} is not installed; run: pip install 'elip-plugin[{entry.extra}]'"
        ) from error
    host: Any = importlib.import_module(entry.package)
    return host


def load_host_by_model(name: str) -> Host:
    """Import the code for the host that a model's name belongs to.

    Args:
        name: A model's name: LAVIS' have underscores where OpenCLIP's have hyphens.

    Returns:
        The host's package.
    """
    return load_host("lavis" if name.startswith(("elip_", "albef_", "blip_")) else "open_clip")


def version_of(name: str) -> str:
    """Tell which version of a host is installed.

    Args:
        name: A key of `HOSTS`.

    Returns:
        The version.
    """
    return metadata.version(HOSTS[name].distribution)


def host_of(module: nn.Module) -> Host:
    """Find the host whose class a module has; no other host is imported.

    Args:
        module: A model or tower.

    Returns:
        The host's package.

    Raises:
        UnsupportedModelError: If the module comes from no known host.
    """
    roots = [cls.__module__.partition(".")[0] for cls in type(module).__mro__]
    for name, entry in HOSTS.items():
        if entry.module in roots:
            return load_host(name)
    raise UnsupportedModelError(
        f"{type(module).__name__} comes from none of the hosts {sorted(HOSTS)}; pass one of "
        "their models or vision towers"
    )


def list_models(host: str | None = None) -> list[str]:
    """List the names of the pruned models.

    Args:
        host: One host's name; None for every installed host.

    Returns:
        The names, in the hosts' order.

    Raises:
        MissingHostError: If the named host is not installed.
    """
    return list(_variants(host))


def get(name: str) -> Variant:
    """Look a pruned model up by name.

    Args:
        name: One of `list_models()`.

    Returns:
        The variant; its `create` builds the model.

    Raises:
        UnknownModelError: If no installed host offers the name.
    """
    known = _variants(None)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {near}?" if near else "see elip_plugin.list_models()"
        raise UnknownModelError(f"model {name!r} is not offered by an installed host; {hint}")
    return known[name]


def _variants(host: str | None) -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for name in [host] if host is not None else HOSTS:
        try:
            found.update(load_host(name).variants())
        except MissingHostError:
            if host is not None:
                raise
    return found
