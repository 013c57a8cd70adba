"""What loading a batch takes, beside which a step may be short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elip_plugin.errors import DataError
from elip_plugin.pictures import Item


class Pictures(Dataset[Tensor]):
    """Pictures that are read and prepared, `count` of them: from the first again after the last."""

    def __init__(
        self, items: Sequence[Item], preprocess: Callable[[Any], Tensor], count: int
    ) -> None:
        self.items, self.preprocess, self.count = items, preprocess, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Tensor:
        item = self.items[place % len(self.items)]
        try:
            picture = item.read()
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            raise DataError(f"--data: {item.name} cannot be read ({error})") from error
        return self.preprocess(picture)


def time_loading(
    items: Sequence[Item],
    preprocess: Callable[[Any], Tensor],
    batch: int,
    workers: int,
    rounds: int,
) -> float:
    """Return the seconds from one batch to the next, as in a training: while workers load others.

    Each of the worker processes loads `rounds` batches that count.
    """
    first = Pictures(items, preprocess, 1)[0]  # what cannot be read at all is said at once
    assert first.ndim == 3
    ahead = 2 * workers  # batches that are ready when the first one is taken
    count = batch * (ahead + workers * rounds)
    batches = iter(
        DataLoader(Pictures(items, preprocess, count), batch_size=batch, num_workers=workers)
    )
    for _ in range(ahead):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / (workers * rounds)
