"""Hosts by entry point, and the names of the pruned models they offer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from importlib import metadata
from pkgutil import resolve_name

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import (
    ConfigError,
    MissingHostError,
    UnknownModelError,
    UnsupportedModelError,
    nearest,
)
from elip_plugin.hosts import autoload
from elip_plugin.hosts.base import Host, HostModel, ModelName

GROUP = "elip_plugin.hosts"


@functools.cache
def hosts() -> dict[str, Host]:
    """Return all hosts by name: ours and those of the entry-point group; imports no library."""
    # Without metadata, as on PYTHONPATH alone, there are no entry points: ours are known anyway.
    places = {path: "elip_plugin" for path in autoload.HOSTS.values()}
    places |= {entry.value: entry.value for entry in metadata.entry_points(group=GROUP)}
    found: dict[str, Host] = {}
    for place in places:
        try:
            host = resolve_name(place)
        except ImportError as error:  # somebody's broken package must not take the others along
            warnings.warn(
                f"the host {place} could not be imported ({error}): install its package again, or "
                "uninstall it",
                stacklevel=2,
            )
            continue
        if not isinstance(host, Host):
            raise ConfigError(f"{place} of the entry-point group {GROUP} is no Host")
        if host.name in found:
            raise ConfigError(
                f"two hosts are called {host.name!r}: {place} and {type(found[host.name])}"
            )
        found[host.name] = host
    return found


def load_host(name: str) -> Host:
    """Import a host's library and register our models with it; `MissingHostError` without it."""
    if name not in hosts():
        hint = nearest(name, hosts(), f"hosts are {sorted(hosts())}")
        raise UnknownModelError(f"host {name!r} is not known; {hint}")
    host = hosts()[name]
    if importlib.util.find_spec(host.module) is None:
        raise MissingHostError(f"{host.module} is not installed; run: {host.install}")
    host.prepare()  # where autoload is switched off, nobody else has
    with warnings.catch_warnings():  # what a host's own libraries say of each other
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module(host.module)
    host.register()
    return host


def installed_hosts() -> Iterator[Host]:
    """Import the hosts that are installed, one after the other."""
    for name in hosts():
        try:
            yield load_host(name)
        except MissingHostError:
            continue


def find_host(module: nn.Module) -> Host:
    """Return the host whose class a model or tower has; no other host is imported."""
    roots = [cls.__module__.partition(".")[0] for cls in type(module).__mro__]
    for name, host in hosts().items():
        if host.module in roots:
            return load_host(name)
    raise UnsupportedModelError(
        f"{type(module).__name__} comes from none of the hosts {sorted(hosts())}; pass one of "
        "their models or vision towers"
    )


def find_model(name: str) -> ModelName:
    """Find a model among all installed hosts, by its own name or that of its base."""
    known: dict[str, str] = {}
    for host in installed_hosts():
        found = host.find(name)
        if found is not None:
            return found
        for model in host.names().values():
            known |= {model.name: host.name, model.base: host.name}
    hint = nearest(name, known, "see `elip models`")
    where = f"{sorted(set(known.values()))}" if known else "none, for none is installed"
    missing = [h.install for h in hosts().values() if h.name not in known.values()]
    more = f"; for more models: {', '.join(missing)}" if missing else ""
    raise UnknownModelError(f"model {name!r} is not known to the hosts {where}; {hint}{more}")


def create(
    name: str,
    config: ElipConfig | None = None,
    *,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> HostModel:
    """Build a pruned model by name, with its preprocessing, tokenizer, encoders and loss.

    Args:
        name: A model name of any installed host, with or without our prefix.
        config: What to prune; None for what the name says.
        checkpoint: Weights, as the host takes them; "" for random ones.
        image_size: Pixels of a side; None for the model's own.
        device: Where to build it; "meta" builds shapes without weights.

    Returns:
        The model.
    """
    host = hosts()[find_model(name).host]
    return host.create(
        name, config=config, checkpoint=checkpoint, image_size=image_size, device=device
    )


def list_models(host: str | None = None) -> list[str]:
    """List the names of the pruned models.

    Args:
        host: One host's name; None for every installed host.

    Returns:
        The names, in the hosts' order.

    Raises:
        MissingHostError: If the named host is not installed.
    """
    found = installed_hosts() if host is None else [load_host(host)]
    return [name for each in found for name in each.names()]


def get(name: str) -> ModelName:
    """Look a pruned model up by name.

    Args:
        name: One of `list_models()`.

    Returns:
        The model's name; its `create` builds the model as the host builds its own.

    Raises:
        UnknownModelError: If no installed host offers the name.
    """
    found = {name: model for host in installed_hosts() for name, model in host.names().items()}
    if name not in found:
        hint = nearest(name, found, "see elip_plugin.list_models()")
        raise UnknownModelError(f"model {name!r} is not offered by an installed host; {hint}")
    return found[name]
