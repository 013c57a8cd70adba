"""Looking through what wraps a model or a layer: parallel training, compilation, averages, PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from elip_plugin.errors import UnsupportedModelError

WRAPPERS: Mapping[str, str] = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "DeepSpeedEngine": "module",
    "PeftModel": "base_model",
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",
}
"""The child that holds the model, by the name of the wrapper's class or of one it derives from.

By names, so that no library is imported; by the class, because a model may have a child that is
called `module` without being a wrapper."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model within any number of wrappers, in any order; refuse what is no module."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"this {type(model).__name__} is no torch.nn.Module: pass the model that it runs (what "
            "torch.compile makes of a compiled model is a function)"
        )
    inner = _child(model)
    while inner is not None:
        model, inner = inner, _child(inner)
    return model


def _child(model: Any) -> nn.Module | None:
    for cls in type(model).__mro__:
        if cls.__name__ in WRAPPERS:
            child: nn.Module | None = model._modules.get(WRAPPERS[cls.__name__])
            if child is not None:
                return child
    return None


def is_adapter(module: nn.Module) -> bool:
    """Tell whether a module is a layer of peft that is wrapped around another one."""
    return any(cls.__name__ == "BaseTunerLayer" for cls in type(module).__mro__)


def in_effect(layer: Any) -> Any:
    """Return what a layer computes: itself, or what is merged or stands alone within adapters."""
    while is_adapter(layer) and layer.merged != layer.disable_adapters:
        layer = layer.base_layer
    return layer


def innermost(module: Any) -> Any:
    """Return what adapters are wrapped around, or the module itself."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module
