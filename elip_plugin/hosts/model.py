"""A pruned model with all that the commands need of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.errors import DataError, ElipError, UnsupportedModelError
from elip_plugin.hosts.registry import find_host
from elip_plugin.patching.checkpoints import reason_of


@dataclass
class HostModel(ABC):
    """A pruned model with all that planning, measuring and drawing need.

    Methods use `self.model`, so `dataclasses.replace(host_model, model=copy)` serves a copy.

    Attributes:
        name: The base model's name.
        model: The model, a `torch.nn.Module`.
        grid_size: Rows and columns of patches.
        mean: What `preprocess` subtracts per color, in 0 to 1.
        std: What it then divides by.
        weights: Where the weights come from, for the reader.
        has_text_tower: Whether `encode_text` is a tower of its own, which reads no image.
        context_option: The option of the host's training command for the tokens of a text, if any.
        references: Other unpruned forms of the model to compare with, by name: functions that
            change a copy in place.
        no_export: Why its towers cannot be exported, as a clause; "" if nothing is against it.
    """

    name: str
    model: Any
    grid_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = "random weights"
    has_text_tower: bool = field(default=True, kw_only=True)
    context_option: str = field(default="", kw_only=True)
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

    def guide(self, tokens: Any) -> Any:
        """Compute what guides the tower by texts, as the model's own forward does."""
        return find_host(self.model).text_guide(self.model, self.encode_text(tokens))

    @abstractmethod
    def loss(self, images: Tensor, tokens: Any) -> Tensor:
        """Compute the training loss of a batch."""

    def save_preprocessing(self, folder: Path) -> None:  # noqa: B027  # a host may have none
        """Write what prepares pictures and texts, in the host's own files; by default nothing.

        Args:
            folder: Where to write.
        """

    def checkpoint(self) -> None:
        """Turn the host's own gradient checkpointing on; refused if there is none."""
        raise UnsupportedModelError(
            f"{self.name} has no gradient checkpointing: measure it without"
        )


@contextmanager
def seeded(device: str = "cpu", seed: int = 0) -> Iterator[None]:
    """Draw equal random weights inside the context; afterwards the random state is as before.

    Args:
        device: Where weights are drawn; the generators of other devices are not touched.
        seed: The seed.
    """
    place = torch.device(device)
    if place.type in ("cpu", "meta"):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` seeds GPUs, too
            yield
        return
    module: Any = torch.get_device_module(place)
    index = module.current_device() if place.index is None else place.index
    with torch.random.fork_rng(devices=[index], device_type=place.type), module.device(index):
        torch.default_generator.manual_seed(seed)
        module.manual_seed(seed)
        yield


@contextmanager
def reading(checkpoint: str, name: str, build: Callable[[], object]) -> Iterator[None]:
    """Report what fails inside the context as an unreadable checkpoint, if it is one.

    Args:
        checkpoint: What is read; "" for nothing.
        name: The model's name.
        build: Builds the model without it: what fails there, too, is not the checkpoint's fault.

    Yields:
        Nothing. DataError where only reading fails.
    """
    try:
        yield
    except (ElipError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of as many kinds as there are kinds of broken files
        if not checkpoint:
            raise
        build()
        raise DataError(
            f"checkpoint {checkpoint!r} of {name} cannot be read: {reason_of(error)}"
        ) from error
