"""Running an exported tower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from elip_plugin.errors import ConfigError, DataError
from elip_plugin.export.formats import Run, find_format
from elip_plugin.export.manifest import read_manifest
from elip_plugin.patching.checkpoints import TRUST, is_trusted

if TYPE_CHECKING:
    import numpy as np

    Batch = TypeVar("Batch", Tensor, np.ndarray[Any, Any])


class Exported:
    """An exported tower, which is called like a function.

    Args:
        manifest: What `manifest.json` says.
        tower: "image" or "text".
        run: What runs the file.
    """

    def __init__(self, manifest: dict[str, Any], tower: str, run: Run) -> None:
        self.manifest, self.tower, self._run = manifest, tower, run

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.manifest["image_size"]
        return height, width

    def __call__(self, *inputs: Batch) -> Batch:
        """Encode a batch of any size.

        Args:
            *inputs: Images [B, 3, height, width], or what the text tower takes; arrays of numpy or
                tensors.

        Returns:
            Features [B, E], of the same kind.

        Raises:
            DataError: If the inputs are not of the shapes that were exported.
        """
        tensors = [torch.as_tensor(given).detach().cpu().contiguous() for given in inputs]
        self._check(tensors)
        features = self._run(*tensors)
        return features if isinstance(inputs[0], Tensor) else features.numpy()

    def _check(self, tensors: list[Tensor]) -> None:
        expected = self.manifest["towers"][self.tower]["inputs"]
        if len(tensors) != len(expected):
            raise DataError(f"this tower takes {list(expected)}, got {len(tensors)} inputs")
        for (name, about), given in zip(expected.items(), tensors, strict=True):
            shape, dtype = about["shape"], str(given.dtype).removeprefix("torch.")
            if list(given.shape[1:]) != shape or given.ndim < 2 or given.shape[0] < 1:
                raise DataError(
                    f"{name} have the shape {list(given.shape)}, but this tower was exported for "
                    f"{['batch', *shape]}: export it for another size by --image-size"
                )
            if dtype != about["dtype"]:
                raise DataError(f"{name} are of {dtype}, but this tower takes {about['dtype']}")


def load(
    folder: str | Path,
    *,
    tower: str = "image",
    threads: int | None = None,
    trusted: bool = False,
) -> Exported:
    """Load a tower that `elip export` wrote, after checking its files.

    Args:
        folder: The folder.
        tower: "image", or "text" where that was exported as well.
        threads: Threads of the runtime; None for its own number.
        trusted: Whether a file of torch.export may be read, which can run code. Without it, only
            files that the environment variable `ELIP_TRUST_CHECKPOINT` names.

    Returns:
        The tower, which takes arrays or tensors.

    Raises:
        DataError: If a file is missing or damaged, or the manifest was changed.
        ConfigError: If the folder has no such tower.
        MissingPackageError: If the runtime is not installed.

    Example:
        >>> encode = elip_plugin.export.load("embed-b32")
        >>> encode(torch.randn(5, 3, 224, 224)).shape
        torch.Size([5, 512])
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    written = manifest["format"]
    if tower not in manifest["towers"]:
        raise ConfigError(f"{folder} has the towers {list(manifest['towers'])}, not {tower!r}")
    path = folder / manifest["towers"][tower]["file"]
    if written == "torch" and not trusted and not is_trusted(path):
        raise DataError(
            f"reading {path} can run code that it contains: if you trust where it comes from, pass "
            f"trusted=True, or set {TRUST}={path}"
        )
    return Exported(manifest, tower, find_format(written).open(path, threads))
