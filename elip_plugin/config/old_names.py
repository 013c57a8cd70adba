"""Names of keys in earlier versions, still read with a warning."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

from elip_plugin.config.mapping import with_options
from elip_plugin.errors import ElipDeprecationWarning

if TYPE_CHECKING:
    from elip_plugin.config.elip_config import ElipConfig

RENAMED = {
    "eval": "eval_mode",
    "guide": "guide_source",
    "warm_in": "warmup",
    "full_finish": "final_unpruned",
}
"""Keys of version 0.1, still read with a DeprecationWarning."""


def accept_old_names(cls: type[ElipConfig]) -> None:
    """Let the constructor take options by themselves, and it and attribute access old names."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: ElipConfig, *args: Any, **fields: Any) -> None:
        init(self, *args, **with_options(rename(fields)))

    cls.__init__ = __init__  # type: ignore[method-assign]
    for old, new in RENAMED.items():
        setattr(cls, old, property(functools.partial(_old_attribute, old, new)))


def _old_attribute(old: str, new: str, config: ElipConfig) -> Any:
    warn_deprecated(old, f"is now called {new!r}", frames=2)
    return getattr(config, new)


def rename(values: dict[str, Any]) -> dict[str, Any]:
    """Give values their new names; a new name that is given beside its old one wins."""
    for old in [key for key in values if key in RENAMED]:
        warn_deprecated(old, f"is now called {RENAMED[old]!r}", frames=3)
        values.setdefault(RENAMED[old], values.pop(old))
        values.pop(old, None)
    return values


def warn_deprecated(key: str, what: str, *, frames: int) -> None:
    """Warn whoever is so many frames above this one."""
    message = f"ELIP config: key {key!r} {what}"
    warnings.warn(message, ElipDeprecationWarning, stacklevel=frames + 1)
