"""What a host is: a library whose models are pruned by name. Imports no host."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.description import Description

OWN_SECTION = "own"
"""`ModelName.preset` of a model whose own config says what is pruned."""


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


@dataclass
class HostModel(ABC):
    """A pruned model with all that planning, measuring and drawing need.

    Methods use `self.model`, so `dataclasses.replace(host_model, model=copy)` serves a copy.

    Attributes:
        name: The base model's name.
        model: The model.
        grid_size: Rows and columns of patches.
        mean: What `preprocess` subtracts per colour, in 0 to 1.
        std: What it then divides by.
        weights: Where the weights come from, for the reader.
        has_text_tower: Whether `encode_text` is a tower of its own, which reads no image.
        context_option: The option of the host's training command for the tokens of a text, if any.
        references: Other unpruned forms of the model to compare with, by name: functions that
            change a copy in place.
    """

    name: str
    model: nn.Module
    grid_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = "random weights"
    has_text_tower: bool = field(default=True, kw_only=True)
    context_option: str = field(default="", kw_only=True)
    references: Mapping[str, Callable[[nn.Module], None]] = field(default_factory=dict)

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

    def guide(self, tokens: Any) -> Any:
        """Compute what guides the tower by texts, as the model's own forward does."""
        from elip_plugin.hosts.registry import find_host

        return find_host(self.model).text_guide(self.model, self.encode_text(tokens))

    @abstractmethod
    def loss(self, images: Tensor, tokens: Any) -> Tensor:
        """Compute the training loss of a batch."""

    def checkpoint(self) -> None:
        """Turn the host's own gradient checkpointing on; refused if there is none."""
        raise UnsupportedModelError(
            f"{self.name} has no gradient checkpointing: measure it without"
        )


class Host:
    """One host: plain facts, and what describes its models. Importing it imports no host library.

    By default a host is a package with a module for each task, imported when it is needed: `names`
    (register, list_names, find), `models` (describe), `guide` (text_guide) and `factory` (create).
    A host may as well override the methods.

    Attributes:
        name: The host's name.
        module: Its top-level module.
        distribution: Its name on the package index.
        install: The command that installs it.
        package: Our package for it.
        oldest: The oldest version that is supported.
        dependency: Whether other packages depend on the library, so that an old version may be
            there for them alone.
    """

    name: str
    module: str
    distribution: str
    install: str
    package: str = ""
    oldest: tuple[int, ...] = ()
    dependency: bool = False

    def prepare(self) -> None:
        """Prepare the host's libraries before it is imported; by default nothing is needed."""

    def import_advice(self) -> str:
        """Return the command to try where the host is installed and does not import."""
        return self.install

    def register(self) -> None:
        """Make the pruned models known to the host, by name; safe to repeat."""
        self._load("names").register()

    def names(self) -> Mapping[str, ModelName]:
        """List the pruned models by name."""
        return self._load("names").list_names()

    def find(self, name: str) -> ModelName | None:
        """Find a model by its own name or by that of its base; by `find` in `names`, if there.

        Args:
            name: What a user gave.

        Returns:
            The model; None if the host knows no such name. UnsupportedModelError if it does and
            cannot prune that model.
        """
        find = getattr(self._load("names"), "find", None)
        if find is not None:
            found: ModelName | None = find(name)
            return found
        names = self.names()
        return names.get(name) or next((m for m in names.values() if m.base == name), None)

    def describe(self, module: nn.Module) -> Description:
        """Describe a model or vision tower; changes nothing.

        Args:
            module: A model or tower of this host.

        Returns:
            Its shape and class swaps. UnsupportedModelError if it cannot be pruned.
        """
        return self._load("models").describe(module)

    def text_guide(self, module: nn.Module, features: Tensor) -> Tensor:
        """Turn a user's text features into a tower's guide.

        Args:
            module: A patched model or bare tower.
            features: What `HostModel.encode_text` gives for a model, a ready guide [B, D] for a
                tower.

        Returns:
            The guide [B, D], detached. GuideError if the features have another shape.
        """
        return self._load("guide").text_guide(module, features)

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

        Args:
            name: A name that `find` knows.
            config: What to prune; None for what the name says.
            checkpoint: Weights, as the host takes them; "" for random ones.
            image_size: Pixels of a side; None for the model's own.
            device: Where to build it; "meta" builds shapes without weights.

        Returns:
            The model. DataError if the checkpoint cannot be read, or does not fit.
        """
        return self._load("factory").create(
            name, config=config, checkpoint=checkpoint, image_size=image_size, device=device
        )

    def _load(self, file: str) -> Any:
        return importlib.import_module(f"{self.package}.{file}")
