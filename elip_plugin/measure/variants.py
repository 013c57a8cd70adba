"""Variants of one model, unpruned and pruned, which share its weights; and passes over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.api import find_handle
from elip_plugin.config import PRESETS, ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import plan_name
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import reducers

UNPRUNED = "full"
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """A variant of a model, and a batch to run it on."""

    host_model: HostModel  # its weights belong to all variants
    images: Tensor  # random [B, 3, height, width]
    tokens: Any  # random texts, as the model takes them
    # Makes the context in which the tower prunes as in a training step, by a guide that is ready.
    guided: Callable[[], AbstractContextManager[None]]
    precision: str  # a key of `PRECISIONS`

    def features(self) -> Tensor:
        """Compute image features or tokens, guided by text where the model prunes by text."""
        with self._autocast(), self.guided():
            return self.host_model.encode_image(self.images)

    def tower_loss(self) -> Tensor:
        """Compute a loss of the image features alone."""
        return self.features().float().square().mean()

    def loss(self) -> Tensor:
        """Compute the training loss; of a model without texts, which has none, a stand-in."""
        if self.tokens is None:
            return self.tower_loss()
        with self._autocast():
            return self.host_model.loss(self.images, self.tokens)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.images.device.type, dtype)


@dataclass(frozen=True)
class Pass:
    """What is run of a variant: a forward to features or a loss, and what follows it."""

    forward: Callable[[Variant], Tensor]
    training: bool = True  # in training mode, with a backward pass
    updates: bool = False  # by the optimizer

    def run(self, variant: Variant, optimizer: torch.optim.Optimizer) -> None:
        """Run the pass once."""
        if not self.training:
            with torch.no_grad():
                self.forward(variant)
            return
        optimizer.zero_grad(set_to_none=True)
        result = self.forward(variant)
        if result.requires_grad:  # not of a tower that is frozen
            torch.autograd.backward(result)
        if self.updates:
            optimizer.step()


NO_SCHEDULE: dict[str, Any] = {"warmup": 0.0, "final_unpruned": 0.0, "text_anneal": 0.0}
"""A measured step is one at the full level of pruning."""

PASSES = {
    "inference": Pass(Variant.features, training=False),
    "tower": Pass(Variant.tower_loss),
    "step": Pass(Variant.loss, updates=True),
}
"""Image features in evaluation, pruned without text; forward and backward of the vision tower;
the whole training step."""


def pruned_variants(own: ElipConfig | None = None) -> dict[str, ElipConfig]:
    """List the pruned variants: the presets, the reducers besides ELIP, and a plan of one's own."""
    others = {n: ElipConfig.from_mapping({"reducer": n}) for n in reducers() if n != "elip"}
    return {**PRESETS, **others, **({} if own is None else {plan_name(own): own})}


def make_variants(
    host_model: HostModel,
    names: Iterable[str],
    *,
    batch: int,
    own: ElipConfig | None = None,
    precision: str = "fp32",
    compiled: bool = False,
) -> dict[str, Variant]:
    """Make variants of a pruned model by name, and a random batch of pairs for all of them.

    The first is the reference; `own`, a plan besides those that have names, comes last unless it is
    named. Raises a ConfigError if a name or the precision is not known.
    """
    plans = pruned_variants(own)
    known, names = [UNPRUNED, *host_model.references, *plans], list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--variants {unknown} are not known; choose from {known}")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision must be one of {list(PRECISIONS)}, got {precision!r}")
    images, tokens = host_model.example_batch(batch)
    variants = {}
    for name in dict.fromkeys([*names, *([] if own is None else [plan_name(own)])]):
        model = _make_model(host_model, name, plans.get(name), compiled=compiled)
        copied = replace(host_model, model=model.train())
        guided: Callable[[], Any] = nullcontext
        if name in plans:
            guided = _opened(copied, tokens)
        if compiled:  # some passes call the tower alone
            copied.encode_image = torch.compile(copied.encode_image)  # type: ignore[method-assign]
        variants[name] = Variant(copied, images, tokens, guided, precision)
    return variants


def _opened(variant: HostModel, tokens: Any) -> Callable[[], AbstractContextManager[None]]:
    """Return what prunes a variant in evaluation too, guided by texts if its plan reads them."""
    pruner, guide = find_pruner(variant.model), None
    if pruner.config.text_weight > 0:
        with torch.no_grad():
            guide = variant.guide(tokens)

    @contextmanager
    def opened() -> Iterator[None]:
        # Whatever the model may be scored by.
        mode = "text" if pruner.reducer.text_alone else "image"
        with pruner.asked(eval_mode=mode, guide=guide):
            yield

    return opened


def _make_model(
    host_model: HostModel, name: str, plan: ElipConfig | None, *, compiled: bool
) -> nn.Module:
    # A copy of the structure, but not of the weights and buffers.
    tensors = (*host_model.model.parameters(), *host_model.model.buffers())
    model: nn.Module = copy.deepcopy(host_model.model, {id(tensor): tensor for tensor in tensors})
    find_handle(model).remove()
    if plan is not None:
        # The model decides whether a text can guide it, and not the plan that it came with.
        options, copied = dict(NO_SCHEDULE), replace(host_model, model=model)
        if copied.describe().no_text_guide is not None:
            options["text_weight"] = 0.0
        copied.prune(replace(plan, **options))
    elif name != UNPRUNED:
        host_model.references[name](model)
    if compiled:
        model.compile()
    return model
