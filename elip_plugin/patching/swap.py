"""Patching somebody else's model by class swaps, and undoing it without a trace.

A patched module's class is a `Patched` subclass that names the class it replaced, so the
undo needs no record: it survives deepcopy, pickle and state dicts, which never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from torch import nn

from elip_plugin.errors import UnsupportedModelError

ATTRIBUTES = ("elip", "elip_block")
"""Instance attributes that patched modules may carry; removed on undo."""


class Patched:
    """Marks the class of a patched module."""

    replaces: ClassVar[type[nn.Module]]
    """The host's class that the patched module had before."""


def find_patched(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the patched modules of a model.

    Args:
        model: Any module.

    Yields:
        Each module whose class was swapped, `model` itself included.
    """
    for module in model.modules():
        if isinstance(module, Patched):
            yield module


def swap(module: nn.Module, patched: type[nn.Module], **attributes: Any) -> None:
    """Give a module its patched class and the attributes that class needs.

    Args:
        module: A module whose class is exactly `patched.replaces`.
        patched: A `Patched` subclass.
        **attributes: Plain attributes, of the names in `ATTRIBUTES`.
    """
    for name, value in attributes.items():
        # Past nn.Module.__setattr__: what the pruner refers to must not become a child.
        module.__dict__[name] = value
    module.__class__ = patched


def choose(module: nn.Module, variants: Mapping[type, type[nn.Module]]) -> type[nn.Module]:
    """Pick the patched class for a module, before anything is changed.

    Args:
        module: The module to be patched.
        variants: Patched classes by the host's exact classes.

    Returns:
        The patched class.

    Raises:
        UnsupportedModelError: If the module is of another class, a subclass included.
    """
    if type(module) not in variants:
        allowed = sorted(cls.__name__ for cls in variants)
        raise UnsupportedModelError(
            f"{type(module).__name__} cannot be pruned here; supported are {allowed} "
            "(apply ELIP before wrapping or compiling a model)"
        )
    return variants[type(module)]


def choose_all(
    modules: Iterable[nn.Module], variants: Mapping[type, type[nn.Module]]
) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Pick the patched class of each module, before anything is changed.

    Args:
        modules: The modules to be patched.
        variants: Patched classes by the host's exact classes.

    Returns:
        Pairs of a module and its patched class; see `choose` for what is refused.
    """
    return [(module, choose(module, variants)) for module in modules]


def restore(model: nn.Module) -> None:
    """Undo every swap in a model; without any, do nothing.

    Args:
        model: A model, patched or not.

    Raises:
        UnsupportedModelError: If a wrapper has since changed a patched module's class.
    """
    modules = list(find_patched(model))
    for module in modules:
        if "replaces" not in vars(type(module)):
            raise UnsupportedModelError(
                f"cannot remove ELIP: {type(module).__name__} was wrapped after ELIP was "
                "applied; remove the wrapper first"
            )
    for module in modules:
        module.__class__ = vars(type(module))["replaces"]
        for name in ATTRIBUTES:
            module.__dict__.pop(name, None)
