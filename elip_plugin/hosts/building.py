"""What hosts build models by name with: equal random weights, and one error for a broken file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from elip_plugin.errors import DataError, ElipError
from elip_plugin.patching.checkpoints import reason_of


def say_recommended(given: str, better: str) -> None:
    """Warn that what was given means the paper's plan, and say which one is recommended."""
    warnings.warn(
        f"{given} has the paper's cuts; recommended is {better}, which costs less and scored "
        "higher (docs/plans.md)",
        stacklevel=2,
    )


@contextmanager
def seeded() -> Iterator[None]:
    """Draw equal random weights on the CPU; afterwards its random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` seeds GPUs, too
        yield


def place_for(device: str) -> torch.device:
    """Return where a model for a device is built: it has equal random weights on every one."""
    return torch.device("meta" if device == "meta" else "cpu")


@contextmanager
def reading(
    checkpoint: str, name: str, build: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Report what fails inside the context as an unreadable checkpoint, if it is one.

    Args:
        checkpoint: What is read; "" for nothing.
        name: The model's name.
        build: Builds the model without it, if that was not done before: what fails there, too, is
            not the checkpoint's fault.

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
