"""Patching somebody else's model by class swaps, and undoing it without a trace.

A patched module's class is a `Patched` subclass that names the class it replaced, so the undo
needs no record: it survives deepcopy, pickle and state dicts, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import nn

from elip_plugin.errors import UnsupportedModelError

T = TypeVar("T")

ATTRIBUTE = "elip"
"""Name of the instance attribute that holds the pruner; others begin with it and `_`. They are
removed on undo."""


class Patched:
    """Marks the class of a patched module."""

    replaces: ClassVar[type[nn.Module]]
    """The host's class that the patched module had before."""

    if TYPE_CHECKING:
        elip: Any  # the pruner

        def __getattr__(self, name: str) -> Any: ...  # what the host's class has

    def _replicate_for_data_parallel(self) -> Any:
        """Replicate for `torch.nn.DataParallel`; refused inside of what a caller has opened."""
        pruner = vars(self).get(ATTRIBUTE)
        if pruner is not None:
            pruner.refuse_replicas()
        return super()._replicate_for_data_parallel()  # type: ignore[misc]


@dataclass(frozen=True)
class Swap:
    """A class swap that is still to be made.

    Attributes:
        module: The module.
        patched: Its patched class.
        attributes: Further instance attributes, whose names begin with `elip_`.
    """

    module: nn.Module
    patched: type[nn.Module]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, **attributes: Any) -> None:
        """Give the module its patched class, its attributes and further ones."""
        for name, value in {**self.attributes, **attributes}.items():
            # Past nn.Module.__setattr__: what the pruner refers to must not become a child.
            self.module.__dict__[name] = value
        _change_class(self.module, self.patched)


def swap_for(module: nn.Module, patched: Mapping[type, type[nn.Module]], **attributes: Any) -> Swap:
    """Return the swap for a module, by the host's exact classes; changes nothing."""
    return Swap(module, entry_for(module, patched), attributes)


def entry_for(module: nn.Module, known: Mapping[type, T]) -> T:
    """Return what there is for a module's exact class; refuse one that is not known."""
    if type(module) not in known:
        raise UnsupportedModelError(
            f"{type(module).__name__} cannot be pruned here; supported are "
            f"{sorted(cls.__name__ for cls in known)} (apply ELIP before wrapping or compiling a "
            "model)"
        )
    return known[type(module)]


def _has_own_forward(module: nn.Module) -> bool:
    """Tell whether its class' own forward also lies on the object.

    Transformers 4.57 leaves it there after it has recorded hidden states; the object would then
    ignore a change of its class.
    """
    return getattr(vars(module).get("forward"), "__func__", None) is type(module).forward


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if _has_own_forward(module):
        del module.__dict__["forward"]
    module.__class__ = cls


def refuse_replaced_forward(module: nn.Module) -> None:
    """Refuse a module that would ignore a change of its class."""
    if "forward" in vars(module) and not _has_own_forward(module):
        raise UnsupportedModelError(
            f"the forward of this {type(module).__name__} was replaced on the object, as the hooks "
            "of accelerate's device_map do: apply ELIP first"
        )


def find_patched(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the patched modules of a model, itself included."""
    for module in model.modules():
        if isinstance(module, Patched):
            yield module


def restore(model: nn.Module) -> None:
    """Undo every swap in a model; refused if a wrapper changed a patched class since."""
    modules = list(find_patched(model))
    for module in modules:
        if "replaces" not in vars(type(module)):
            raise UnsupportedModelError(
                f"cannot remove ELIP: {type(module).__name__} was wrapped after ELIP was "
                "applied; remove the wrapper first"
            )
    for module in modules:
        _change_class(module, vars(type(module))["replaces"])
        for name in list(module.__dict__):
            if name == ATTRIBUTE or name.startswith(ATTRIBUTE + "_"):
                del module.__dict__[name]
