"""Files of weights: safetensors, or state dicts that hold nothing but tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from elip_plugin.errors import DataError
from elip_plugin.patching.checkpoints import load_checkpoint, reason_of


def read_state(checkpoint: str) -> dict[str, Tensor]:
    """Read a file of weights without running code.

    Args:
        checkpoint: A file of safetensors (by its name), or of `torch.save(model.state_dict())`.

    Returns:
        The weights by name.

    Raises:
        DataError: If it cannot be read, or holds anything else.
    """
    if Path(checkpoint).suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            state: Any = load_file(checkpoint)
        except Exception as error:  # of as many kinds as there are kinds of broken files
            raise DataError(
                f"checkpoint {checkpoint!r} cannot be read: {reason_of(error)}"
            ) from error
    else:
        state = load_checkpoint(checkpoint)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(
            f"checkpoint {checkpoint!r} is no state dict: save it by torch.save(model.state_dict(),"
            " ...) or safetensors.torch.save_file"
        )
    return state


@contextmanager
def reading_state(checkpoint: str, name: str) -> Iterator[None]:
    """Report weights that do not fit a model, which was built before.

    Args:
        checkpoint: Their file.
        name: The model's name.

    Yields:
        Nothing.

    Raises:
        DataError: If loading fails.
    """
    try:
        yield
    except Exception as error:  # a wrong name or shape, or what a library makes of them
        reason = " ".join(str(error).split())
        raise DataError(f"checkpoint {checkpoint!r} does not fit {name}: {reason[:300]}") from error
