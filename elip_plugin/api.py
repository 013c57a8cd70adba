"""`apply`: prune a model in place, and get a handle that guides, pauses and undoes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.trace import Trace
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.registry import host_of
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import find_patched, restore
from elip_plugin.planning import Plan


class Handle:
    """Control over the pruning of one model; holds nothing but the model.

    Args:
        model: A patched model or tower.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def config(self) -> ElipConfig:
        """The configuration in force."""
        return self._pruner().config

    @property
    def plan(self) -> Plan:
        """The plan at the tower's nominal resolution."""
        return self._pruner().plan

    @contextmanager
    def guide(self, features: Tensor) -> Iterator[None]:
        """Guide the forwards inside the context, where pruning is active, by this text.

        A guide given here wins over the caption in `model(image, text)`. In evaluation the
        config's `eval` decides whether anything is pruned.

        Args:
            features: Text features [B, E] for a whole model (any norm), or a guide [B, D]
                for a bare tower. Detached.

        Yields:
            Nothing.
        """
        host = host_of(self.model)
        with self._pruner().guided(host.to_guide(self.model, features)):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the forwards inside the context unpruned, bitwise as the base model.

        Yields:
            Nothing.
        """
        _require_patched(self.model)
        with ExitStack() as stack:
            for pruner in _pruners(self.model):
                stack.enter_context(pruner.disabled())
            yield

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record which patches the forwards inside the context keep and merge.

        A trace holds the last of these forwards, and puts its tokens back on the full grid.

        Yields:
            The trace, which is filled as forwards run.

        Raises:
            UnsupportedModelError: If the model's reducer cannot be traced.
        """
        with self._pruner().traced() as trace:
            yield trace

    def remove(self) -> None:
        """Turn the model back into what it was; safe to repeat.

        Nothing of this package is left on it, its weights are as they are now.
        """
        restore(self.model)

    def _pruner(self) -> Pruner:
        _require_patched(self.model)
        return host_of(self.model).pruner_of(self.model)


def apply(model: nn.Module, config: ElipConfig | Mapping[str, Any] | str | None = None) -> Handle:
    """Prune the vision tower of a model in place.

    Args:
        model: An OpenCLIP model, its bare vision tower, or LAVIS' `VisionTransformer`.
        config: A configuration, a mapping for `ElipConfig.from_mapping`, or a preset's
            name; None for the default preset.

    Returns:
        A handle. On any error the model is as before.

    Raises:
        UnsupportedModelError: If the model cannot be pruned, or already is.
    """
    if any(True for _ in find_patched(model)):
        raise UnsupportedModelError(
            "this model is pruned by ELIP already; call find_handle(model).remove() first"
        )
    if not isinstance(config, ElipConfig):
        config = ElipConfig.from_mapping(config)
    host_of(model).patch(model, config)
    return Handle(model)


def find_handle(model: nn.Module) -> Handle:
    """Get the handle of a model that was made by name, copied or unpickled.

    Args:
        model: A patched model or tower; DistributedDataParallel and torch.compile wrappers
            are looked through.

    Returns:
        Its handle.

    Raises:
        UnsupportedModelError: If the model is not patched.
    """
    for wrapped in ("_orig_mod", "module"):
        model = model._modules.get(wrapped) or model
    _require_patched(model)
    return Handle(model)


@contextmanager
def guide(model: nn.Module, features: Tensor) -> Iterator[None]:
    """Guide the image encoding inside the context; short for `find_handle(model).guide`.

    Args:
        model: A patched model or tower, wrapped or not.
        features: Text features [B, E] for a whole model, or a guide [B, D] for a bare tower.

    Yields:
        Nothing.
    """
    with find_handle(model).guide(features):
        yield


def _pruners(model: nn.Module) -> list[Pruner]:
    """All pruners of a model: one for each of its towers that is pruned."""
    found = (vars(module).get("elip") for module in find_patched(model))
    return list({id(pruner): pruner for pruner in found if isinstance(pruner, Pruner)}.values())


def _require_patched(model: nn.Module) -> None:
    if not any(True for _ in find_patched(model)):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not pruned by ELIP; call elip_plugin.apply(model) first"
        )
