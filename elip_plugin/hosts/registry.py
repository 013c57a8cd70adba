"""Hosts by entry point, and the names of the pruned models they offer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from elip_plugin.config import SAYS_PLAN, ElipConfig
from elip_plugin.errors import (
    ElipError,
    MissingHostError,
    UnknownModelError,
    UnknownTowerError,
    UnsupportedModelError,
    nearest,
)
from elip_plugin.hosts import autoload
from elip_plugin.hosts.base import Host, ModelName
from elip_plugin.patching.description import Description
from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.swap import Patched
from elip_plugin.patching.wrappers import unwrap

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel

GROUP = "elip_plugin.hosts"
T = TypeVar("T")


@functools.cache
def hosts() -> dict[str, Host]:
    """Return all hosts by name: ours and those of the entry-point group; imports no library."""
    # Without metadata, as on PYTHONPATH alone, there are no entry points: ours are known anyway.
    places = dict.fromkeys(autoload.HOSTS.values())
    places |= dict.fromkeys(entry.value for entry in metadata.entry_points(group=GROUP))
    found: dict[str, Host] = {}
    for place in places:
        try:
            host = resolve_name(place)
        except Exception as error:  # a broken package must not take the others along
            _warn(f"{place} could not be imported ({error}): install its package again", "")
            continue
        if not isinstance(host, Host):
            _warn(f"{place} of the entry-point group {GROUP} is no Host", "")
        elif host.name in found:
            _warn(f"{place} has the name {host.name!r} of another", f" ({type(found[host.name])})")
        else:
            found[host.name] = host
    return found


def _warn(fault: str, more: str) -> None:
    warnings.warn(f"a host is left out: {fault}{more}", stacklevel=3)


def load_host(name: str) -> Host:
    """Import a host's library and register our models with it.

    Raises MissingHostError if the library is not installed or does not import, and
    UnsupportedModelError if its version is not supported.
    """
    if name not in hosts():
        hint = nearest(name, hosts(), f"hosts are {sorted(hosts())}")
        raise UnknownModelError(f"host {name!r} is not known; {hint}")
    host = hosts()[name]
    if not _is_installed(host):
        raise MissingHostError(f"{host.module} is not installed; run: {host.install}")
    host.check_versions()
    host.prepare()  # where autoload is switched off, nobody else has
    with warnings.catch_warnings():  # what a host's own libraries say of each other
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            importlib.import_module(host.module)
        except Exception as error:
            raise MissingHostError(
                f"{host.module} is installed and does not import "
                f"({type(error).__name__}: {error}); try: {host.import_advice()}"
            ) from error
    with _blaming(name):
        host.register()
    return host


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Name the host whose code fails inside the context."""
    try:
        yield
    except ElipError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"host {name!r} fails ({type(error).__name__}: {error}); its library may be newer than "
            "what this version was made for"
        ) from error


def _is_installed(host: Host) -> bool:
    return importlib.util.find_spec(host.module) is not None


def list_names(host: str) -> Mapping[str, ModelName]:
    """List the pruned models of one host by name; see `list_models` for the errors."""
    loaded = load_host(host)
    with _blaming(host):
        return loaded.names()


def _ask_hosts(
    question: Callable[[Host], T], faults: dict[str, Exception] | None = None
) -> Iterator[tuple[str, T]]:
    """Yield names of the installed hosts, and their answers.

    An `ElipError` is an answer and is raised. A host that fails otherwise is named in a warning,
    and noted in `faults`.
    """
    for name, host in hosts().items():
        # An old version of a library may be there for other packages alone.
        unused = host.dependency and host.is_too_old()
        if not _is_installed(host) or unused:
            continue
        loaded = False
        try:
            load_host(name)
            loaded = True
            answer = question(host)
        except Exception as error:
            if loaded and isinstance(error, ElipError):
                raise
            if faults is not None:
                faults[name] = error
            warnings.warn(
                f"the models of host {name!r} are left out ({type(error).__name__}: {error})",
                stacklevel=3,
            )
        else:
            yield name, answer


def _names_of(module: nn.Module) -> list[str]:
    """List the hosts of a model's class and of those it derives from, the most derived first.

    Torch, from which all classes derive, comes last: its host is `anyvit`.
    """
    by_module = {host.module: name for name, host in hosts().items()}
    roots = (cls.__module__.partition(".")[0] for cls in type(module).__mro__)
    return list(dict.fromkeys(by_module[root] for root in roots if root in by_module))


def describe(module: nn.Module, image_size: int | tuple[int, int] | None = None) -> Description:
    """Describe a model by its host, or as any ViT where its host does not know its tower.

    Args:
        module: A model or tower, wrapped or not; nothing of it changes.
        image_size: Pixels of a side of its images, or rows and columns, for a tower that its host
            does not know; None for the model's own.

    Returns:
        Its description.

    Raises:
        UnsupportedModelError: If it cannot be pruned, with what its host says first.
    """
    module = unwrap(module)
    *known, last = _names_of(module)
    refusal = f"{type(module).__name__} comes from none of the hosts {sorted(hosts())}"
    if known:
        try:
            found = find_host(module).describe(module)
        except UnknownTowerError as error:
            refusal = str(error)
        else:
            if image_size is not None:
                raise UnsupportedModelError(
                    f"image_size {image_size} is for models that take several sizes, and towers of "
                    f"{known[0]} have the size that they were built for: leave it out"
                )
            return found
    try:
        host: Any = load_host(last)
        described: Description = host.describe(module, image_size)
        return described
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refusal}; as any other ViT: {error}") from error


def find_host(module: nn.Module) -> Host:
    """Return the host of a model or tower, wrapped or not; no other host is imported.

    The model's class and those it derives from decide, the most derived first. If the first host
    cannot prune a class that it derived from another's, the other is asked.
    """
    module = unwrap(module)
    names = _names_of(module)
    names = names[:-1] or names  # torch's own, the last, is for models of no other
    for name in names[:-1]:
        with suppress(UnsupportedModelError, MissingHostError):  # too old, not whole, or not its
            host = load_host(name)
            if not isinstance(module, Patched):
                host.describe(module)
            return host
    return load_host(names[-1])


def find_model(name: str) -> ModelName:
    """Find a model among all installed hosts, by its own name or that of its base."""
    faults: dict[str, Exception] = {}
    asked: list[str] = []
    known: set[str] = set()
    for host, (found, names) in _ask_hosts(lambda each: (each.find(name), each.names()), faults):
        if found is not None:
            return found
        asked.append(host)
        known |= {*names, *(model.base for model in names.values())}
    hint = nearest(name, known, "see `elip models`")
    more = "".join(f"; host {host!r} failed ({error})" for host, error in faults.items())
    missing = [host.install for host in hosts().values() if not _is_installed(host)]
    if missing:
        more += f"; for more models: {', '.join(missing)}"
    raise UnknownModelError(f"model {name!r} is not known to the hosts {asked}; {hint}{more}")


def create(
    name: str,
    config: ElipConfig | Mapping[str, Any] | str | None = None,
    *,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> HostModel:
    """Build a pruned model by name, with its preprocessing, tokenizer, encoders and loss.

    Args:
        name: A model name of any installed host, with or without our prefix.
        config: What to prune, as `apply` takes it; None for what the name says, which a mapping
            without `preset`, `stages` and `reducer` changes.
        checkpoint: Weights, as the host takes them; "" for random ones.
        image_size: Pixels of a side; None for the model's own.
        device: Where to build it; "meta" builds shapes without weights.

    Returns:
        The model.

    Raises:
        ConfigError: If the configuration is at fault.
        UnknownModelError: If no installed host knows the name.
        UnsupportedModelError: If the model cannot be pruned.
        DataError: If the checkpoint cannot be read, or does not fit.

    Example:
        >>> made = elip_plugin.create("elip-half-ViT-B-32")
        >>> images, tokens = made.example_batch(2)
        >>> made.encode_image(images).shape
        torch.Size([2, 512])
    """
    if isinstance(config, Mapping) and not {*config} & SAYS_PLAN:
        model = create(name, checkpoint=checkpoint, image_size=image_size, device=device)
        own = find_pruner(model.model).config.to_mapping()
        model.prune(ElipConfig.from_mapping(config, default=own))
        return model
    if config is not None and not isinstance(config, ElipConfig):
        config = ElipConfig.from_mapping(config)
    host = load_host(find_model(name).host)
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
        UnknownModelError: If the named host is not known.

    Example:
        >>> "elip-half-ViT-B-16" in elip_plugin.list_models("open_clip")
        True
    """
    if host is not None:
        return list(list_names(host))
    return [name for _, names in _ask_hosts(lambda each: each.names()) for name in names]
