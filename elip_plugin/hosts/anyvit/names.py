"""Names of models that embed pictures: `hf:FOLDER`, `timm:NAME` and `torchvision:NAME`."""

from __future__ import annotations

from importlib.util import find_spec

from elip_plugin.errors import MissingHostError
from elip_plugin.hosts.base import ModelName

INSTALL = {
    "hf": ("transformers", "pip install 'elip-plugin[transformers]'"),
    "timm": ("timm", "pip install timm"),
    "torchvision": ("torchvision", "pip install torchvision"),
}
"""The library of each kind of name, and how it is installed; our module `of_LIBRARY` loads its
models."""


def find(name: str) -> ModelName | None:
    """Find a model by its name.

    Args:
        name: What a user gave.

    Returns:
        The model; None for a name of another kind. It is built, and may be refused, by `create`.

    Raises:
        MissingHostError: If its library is not installed.
    """
    kind, _, base = name.partition(":")
    if kind not in INSTALL or not base:
        return None
    module, install = INSTALL[kind]
    if find_spec(module) is None:
        raise MissingHostError(f"{module} is not installed; run: {install}")
    return ModelName(name, "anyvit", base)
