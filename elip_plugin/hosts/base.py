"""What a package that adds a host imports: its contract, and that of its models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.files import replacing, writable
from elip_plugin.hosts.versions import installed_version, version_of
from elip_plugin.patching.description import Description
from elip_plugin.patching.install import install
from elip_plugin.patching.swap import restore


class Host(ABC):
    """A library whose models can be pruned. Importing a host does not import the library.

    One that also builds models by name, for the commands, has `names` or `find`, and `create`.
    docs/writing_a_host.md has two whole ones.

    Attributes:
        name: The host's name.
        module: Its top-level module.
        distribution: Its name on the package index.
        install: The command that installs it.
        oldest: The oldest version that is supported.
        dependency: Whether other packages depend on the library, so that an old version may be
            there for them alone.
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

    def register(self) -> None:  # noqa: B027  # a host may have no names
        """Make the names known to the host's library; safe to repeat. By default they are not."""

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name; by default there are none."""
        return {}

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

        The caller's random numbers stay as they are; see `elip_plugin.hosts.building.seeded`.

        Args:
            name: A name that `find` knows.
            config: What to prune; None for what the name says.
            checkpoint: Weights, as the host takes them; "" for random ones.
            image_size: Pixels of a side; None for the model's own.
            device: Where to build it; "meta" builds shapes without weights.

        Returns:
            The model. DataError if the checkpoint cannot be read, or does not fit.
        """
        raise NotImplementedError

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
        own_plan: Whether the model's own config says what is pruned, and not its name.
    """

    name: str
    host: str
    base: str
    own_plan: bool = False


@dataclass
class HostModel(ABC):
    """A pruned model with all that planning, measuring and drawing need.

    Methods use `self.model`, so `dataclasses.replace(host_model, model=copy)` serves a copy.

    Attributes:
        host: The host that the model is of.
        name: The base model's name.
        model: The model, a `torch.nn.Module`.
        grid_size: Rows and columns of patches.
        mean: What `preprocess` subtracts per color, in 0 to 1.
        std: What it then divides by.
        weights: Where the weights come from, for the reader.
        has_text_tower: Whether `encode_text` is a tower of its own, which reads no image.
        references: Other unpruned forms of the model to compare with, by name: functions that
            change a copy in place.
        no_export: Why its towers cannot be exported, as a clause; "" if nothing is against it.
    """

    host: ClassVar[Host]
    name: str
    model: Any
    grid_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = "random weights"
    has_text_tower: bool = field(default=True, kw_only=True)
    references: Mapping[str, Callable[[nn.Module], None]] = field(default_factory=dict)
    no_export: str = field(default="", kw_only=True)

    @abstractmethod
    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, height, width]."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Any:
        """Turn texts into what `encode_text` and `loss` take."""

    @abstractmethod
    def example_batch(self, batch: int) -> tuple[Tensor, Any]:
        """Return random images [B, 3, height, width] and tokens, on the model's device."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Run the vision tower: features [B, E], or the tokens that the model reads."""

    @abstractmethod
    def encode_text(self, tokens: Any) -> Tensor:
        """Encode texts into what `Handle.guide` takes, [B, E]."""

    def describe(self) -> Description:
        """Describe the model for pruning; by default its host does."""
        return self.host.describe(self.model)

    def prune(self, config: ElipConfig) -> None:
        """Prune the model by another plan, in place of the one that it may have.

        Args:
            config: What to prune. The errors are those of `elip_plugin.apply`; after one of them
                the model is not pruned.
        """
        restore(self.model)
        install(self.describe(), config)

    def guide(self, tokens: Any) -> Any:
        """Compute what guides the tower by texts, as the model's own forward does."""
        return self.host.text_guide(self.model, self.encode_text(tokens))

    @abstractmethod
    def loss(self, images: Tensor, tokens: Any) -> Tensor:
        """Compute the training loss of a batch."""

    def save_preprocessing(self, folder: Path) -> None:  # noqa: B027  # a host may have none
        """Write what prepares pictures and texts, in the host's own files; by default nothing.

        Args:
            folder: Where to write.
        """

    def save_weights(self, folder: Path) -> Path:
        """Write the weights; by default the file `weights.pt`.

        Args:
            folder: Where to write.

        Returns:
            What `create` takes as `checkpoint`.
        """
        path = folder / "weights.pt"
        with writable(path), replacing(path) as unfinished:
            torch.save(self.model.state_dict(), unfinished)
        return path


class PackageHost(Host):
    """A host whose parts are modules of a package, each imported when it is asked for.

    They are `models`, `guide`, `names` and `factory`, with functions of the names of the methods
    here; see `Host`.

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

    def find(self, name: str) -> ModelName | None:
        """Find a model by its own name or by that of its base."""
        return self._part("names").find(name)

    def create(self, name: str, **options: Any) -> HostModel:
        """Build a pruned model."""
        return self._part("factory").create(name, **options)


class ListedHost(PackageHost):
    """A host whose pruned models have names, which its library is told."""

    def register(self) -> None:
        """Make the names known to the library."""
        self._part("names").register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        return self._part("names").list_names()
