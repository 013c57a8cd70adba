"""Getting a model out again: what is pushed to a hub loads for people without this package.

The weights are the base model's already. Only the config's key has to go, which OpenCLIP alone
would refuse, and the card should say how the model was trained.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import open_clip

from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.swap import Patched

CONFIG_KEY = "elip"
"""Top-level key of a model config that turns pruning on."""


def install() -> None:
    """Replace two functions of `open_clip.push_to_hf_hub` by ones that export base models."""
    # The package's attribute of that name is the function; the module is needed.
    module: Any = sys.modules["open_clip.push_to_hf_hub"]
    module.save_config_for_hf = as_base_config(module.save_config_for_hf)
    module.push_to_hf_hub = open_clip.push_to_hf_hub = with_card(module.push_to_hf_hub)


def as_base_config(save: Callable[..., None]) -> Callable[..., None]:
    """Wrap `save_config_for_hf` so that it leaves our key out."""

    @functools.wraps(save)
    def save_config_for_hf(model: Any, config_path: Any, model_config: Any) -> None:
        base = {k: v for k, v in (model_config or {}).items() if k != CONFIG_KEY}
        save(model, config_path, base if model_config is not None else None)

    return save_config_for_hf


def with_card(push: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `push_to_hf_hub` so that a pruned model's card says how it was trained."""

    @functools.wraps(push)
    def push_to_hf_hub(model: Any, *args: Any, **kw: Any) -> Any:
        call = inspect.signature(push).bind(model, *args, **kw)
        call.arguments["model_card"] = card_of(model, call.arguments.get("model_card"))
        return push(*call.args, **call.kwargs)

    return push_to_hf_hub


def card_of(model: Any, card: dict[str, Any] | None) -> dict[str, Any] | None:
    """Add to a pruned model's card, which is not changed, how it was trained."""
    if not isinstance(model, Patched):
        return card
    plan = find_pruner(model).plan.summary()
    line = f"pruned while training by ELIP (arXiv 2309.16738): {plan}. Loads as the base model."
    card = dict(card or {})
    return {**card, "details": {**card.get("details", {}), "Vision tokens": line}}
