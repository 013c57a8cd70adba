"""What a host is: a contract for pruning, and one for a catalogue of models. Imports no host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.versions import installed_version, version_of
from elip_plugin.patching.description import Description

if TYPE_CHECKING:
    from elip_plugin.hosts.model import HostModel

FROM_CONFIG = "own"
"""`ModelName.preset` of a model whose own config says what is pruned."""


class Host(ABC):
    """A library whose models can be pruned. Importing a host does not import the library.

    A host that also builds models by name is a `Catalogue` besides.

    Attributes:
        name: The host's name.
        module: Its top-level module.
        distribution: Its name on the package index.
        install: The command that installs it.
        oldest: The oldest version that is supported.
        dependency: Whether other packages depend on the library, so that an old version may be
            there for them alone.

    Example:
        >>> class ToyHost(Host):
        ...     name = module = distribution = "toylib"
        ...     install = "pip install toylib"
        ...
        ...     def describe(self, module):
        ...         from toylib_elip import models
        ...
        ...         return models.describe(module)
        ...
        ...     def text_guide(self, module, features):
        ...         return features.detach()
    """

    name: str
    module: str
    distribution: str
    install: str
    oldest: tuple[int, ...] = ()
    dependency: bool = False

    @abstractmethod
    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; changes nothing.

        Args:
            module: A model or tower of this host.

        Returns:
            Its shape and class swaps. UnsupportedModelError if it cannot be pruned.
        """

    @abstractmethod
    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn a user's text features into a tower's guide.

        Args:
            module: A patched model or bare tower.
            features: What `HostModel.encode_text` gives for a model, a ready guide [B, D] for a
                tower.

        Returns:
            The guide [B, D], detached. GuideError if the features have another shape.
        """

    def prepare(self) -> None:  # noqa: B027  # most hosts need nothing
        """Prepare the host's libraries before it is imported; by default, do nothing."""

    def import_advice(self) -> str:
        """Return the command to try where the host is installed and does not import."""
        return self.install

    def is_too_old(self) -> bool:
        """Return whether the installed version is older than what is supported."""
        found = installed_version(self.distribution)
        return bool(found) and found < self.oldest  # without metadata, as of a checkout: unknown

    def check_versions(self) -> None:
        """Raise an UnsupportedModelError if the installed version is not supported."""
        if self.is_too_old():
            oldest = ".".join(map(str, self.oldest))
            raise UnsupportedModelError(
                f"models of {self.distribution} {version_of(self.distribution)} cannot be "
                f"pruned: {oldest} or later is needed; run: {self.install}"
            )


@dataclass(frozen=True)
class ModelName:
    """A pruned model that a host can build by name.

    Attributes:
        name: Its name, as the host knows it.
        host: The host's name.
        base: Name of the model it prunes.
        preset: What it prunes by, unless its config says otherwise: a preset's name, or "own".
        factory: The host's own way to build a model from a name.
    """

    name: str
    host: str
    base: str
    preset: str
    factory: Callable[..., nn.Module]

    def create(self, **options: Any) -> nn.Module:
        """Build the model as the host builds its own.

        Args:
            **options: What the host's factory takes besides the name.

        Returns:
            The pruned model.
        """
        return self.factory(self.name, **options)


@runtime_checkable
class Catalogue(Protocol):
    """What a host offers by name, for the commands; any host with these methods is one."""

    @abstractmethod
    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""

    @abstractmethod
    def create(
        self,
        name: str,
        *,
        config: ElipConfig | None = None,
        checkpoint: str = "",
        image_size: int | None = None,
        device: str = "cpu",
    ) -> HostModel:
        """Build a pruned model by name, with all that measuring and drawing need.

        The caller's random numbers stay as they are; see `elip_plugin.hosts.base.seeded`.

        Args:
            name: A name that `find` knows.
            config: What to prune; None for what the name says.
            checkpoint: Weights, as the host takes them; "" for random ones.
            image_size: Pixels of a side; None for the model's own.
            device: Where to build it; "meta" builds shapes without weights.

        Returns:
            The model. DataError if the checkpoint cannot be read, or does not fit.
        """

    def register(self) -> None:
        """Make the names known to the host's library; safe to repeat. By default they are not."""

    def find(self, name: str) -> ModelName | None:
        """Find a model by its own name or by that of its base.

        Args:
            name: What a user gave.

        Returns:
            The model; None if the host knows no such name. UnsupportedModelError if it does and
            cannot prune that model.
        """
        names = self.names()
        return names.get(name) or next((m for m in names.values() if m.base == name), None)


class PackageHost(Host, Catalogue):
    """A host whose parts are modules of a package, each imported when it is asked for.

    They are `models`, `guide`, `names` and `factory`, with functions of the names of the methods
    here; see `Host` and `Catalogue`.

    Attributes:
        package: The package's name.
    """

    package: str

    def _part(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower."""
        return self._part("models").describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn text features into a guide."""
        return self._part("guide").text_guide(module, features)

    def register(self) -> None:
        """Make the names known to the host's library."""
        self._part("names").register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name, by `list_names`."""
        return self._part("names").list_names()

    def find(self, name: str) -> ModelName | None:
        """Find a model by its own name or by that of its base."""
        return self._part("names").find(name)

    def create(self, name: str, **options: Any) -> HostModel:
        """Build a pruned model."""
        return self._part("factory").create(name, **options)
