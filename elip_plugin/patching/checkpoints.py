"""Loading checkpoint files without running the code that they may contain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.serialization import load

from elip_plugin.errors import DataError

TRUST = "ELIP_TRUST_CHECKPOINT"
"""Environment variable: paths of files that may be unpickled, separated by `os.pathsep`."""


def load_checkpoint(path: str | Path) -> Any:
    """Load a file of `torch.save` onto the CPU.

    Args:
        path: The file. Python objects, which can run code, are unpickled only if the environment
            variable `ELIP_TRUST_CHECKPOINT` names it.

    Returns:
        What was saved, usually a dict.

    Raises:
        DataError: If there is no such file, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {str(path)!r} is no file")
    trusted = is_trusted(path)
    try:
        return load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:  # of as many kinds as there are kinds of broken files
        message = f"{path} cannot be read as weights ({reason_of(error)})"
        if not trusted:
            message += f"; if you trust where it comes from, set {TRUST}={path} to load any object"
        raise DataError(message) from error


def read_state(path: str) -> dict[str, Tensor]:
    """Read a state dict from a file of safetensors, by its name, or of `torch.save`.

    Raises a DataError if it cannot be read, or holds anything else.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except Exception as error:  # of as many kinds as there are kinds of broken files
            raise DataError(f"checkpoint {path!r} cannot be read: {reason_of(error)}") from error
    else:
        state = load_checkpoint(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(
            f"checkpoint {path!r} is no state dict: save it by torch.save(model.state_dict(), ...) "
            "or safetensors.torch.save_file"
        )
    return state


def is_trusted(path: Path) -> bool:
    """Return whether the environment variable `ELIP_TRUST_CHECKPOINT` names a file."""
    names = filter(None, os.environ.get(TRUST, "").split(os.pathsep))
    return path.resolve() in [Path(name).expanduser().resolve() for name in names]


def reason_of(error: Exception) -> str:
    """Return the first line of an error, without torch's advice to use weights_only=False.

    Where that announces others, such as the weights that do not fit, it is followed by them.
    """
    text = str(error.__context__ or error).strip() or type(error).__name__
    first = text.splitlines()[0]
    if first.endswith(":"):
        first = " ".join(text.split())[:300]
    return first.partition(" Please use")[0]
