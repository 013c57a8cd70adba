"""Run pictures through a model, text by text, and note what each stage did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elip_plugin.api import find_handle
from elip_plugin.config import ElipConfig
from elip_plugin.core.trace import MERGED, StageTrace
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.registry import host_of
from elip_plugin.patching.monkeypatch import replaced
from elip_plugin.visualize.pictures import Picture
from elip_plugin.visualize.sight import Sight


@dataclass(frozen=True)
class StageView:
    """What is left of a picture after one stage.

    Attributes:
        block: The block before which it pruned.
        kept: Patches that are still tokens of their own.
        merged: Weights of the patches in the token that this stage made, 0 to 1, by patch.
        earlier: Patches in a token that an earlier stage made, and this one kept.
        gone: Patches that were dropped.
    """

    block: int
    kept: tuple[int, ...]
    merged: dict[int, float]
    earlier: tuple[int, ...]
    gone: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One picture with one text.

    Attributes:
        picture: Its place in `Look.pictures`.
        text: The text that guided; None for the image alone.
        stages: What each stage left.
        differing: Patches kept at the end that the picture's first row did not keep; None for
            that first row itself.
    """

    picture: int
    text: str | None
    stages: tuple[StageView, ...]
    differing: int | None


@dataclass(frozen=True)
class Look:
    """All that is drawn.

    Attributes:
        model: The model's name.
        weights: Where its weights come from.
        plan: The plan in one line.
        grid: Rows and columns of patches.
        pictures: Names and pictures as the model sees them (Pillow images).
        rows: What was done to them.
    """

    model: str
    weights: str
    plan: str
    grid: tuple[int, int]
    pictures: tuple[tuple[str, Any], ...]
    rows: tuple[Row, ...]

    @property
    def patches(self) -> int:
        """Patches N."""
        return self.grid[0] * self.grid[1]


def look(sight: Sight, pictures: Sequence[Picture], texts: Sequence[str]) -> Look:
    """Look at pictures through a model.

    Args:
        sight: The model.
        pictures: The pictures.
        texts: Texts to guide by, each on every picture; if empty, each picture's own caption,
            or the image alone where it has none.

    Returns:
        What each stage did.

    Raises:
        ConfigError: If texts are given to a model that reads none.
    """
    handle = find_handle(sight.model)
    if texts and handle.config.text_weight == 0:
        raise ConfigError(
            f"{sight.name} is pruned by the image alone (text_weight 0), so a text changes "
            "nothing: leave --text out"
        )
    rows: list[Row] = []
    shown = []
    for place, picture in enumerate(pictures):
        image = sight.prepare(picture.image).unsqueeze(0)
        shown.append((picture.name, _as_seen(image[0], sight)))
        first: tuple[int, ...] | None = None
        for text in _texts(picture, texts, handle.config):
            stages = _stages(sight, image, text)
            last = stages[-1].kept
            differing = None if first is None else len(set(last) - set(first))
            first = last if first is None else first
            rows.append(Row(place, text, stages, differing))
    plan = handle.plan.summary()
    return Look(sight.name, sight.weights, plan, sight.grid, tuple(shown), tuple(rows))


def _texts(picture: Picture, texts: Sequence[str], config: ElipConfig) -> Iterable[str | None]:
    if config.text_weight == 0:
        return [None]
    return texts or [picture.caption]


def _stages(sight: Sight, image: Tensor, text: str | None) -> tuple[StageView, ...]:
    handle = find_handle(sight.model)
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(_pruning(sight.model, "image" if text is None else "text"))
        if text is not None:
            stack.enter_context(handle.guide(sight.encode_text(text)))
        trace = stack.enter_context(handle.trace())
        sight.encode_image(image)
    return tuple(_view(stage) for stage in trace.stages)


@contextmanager
def _pruning(model: Any, mode: str) -> Iterator[None]:
    """Prune in evaluation, by text too: what is seen here scores nothing, so nothing leaks."""
    pruner = host_of(model).pruner_of(model)
    with replaced(pruner, "config", replace(pruner.config, eval=mode)):
        yield


def _view(stage: StageTrace) -> StageView:
    kept = tuple(i for i in stage.kept[0].tolist() if i != MERGED)
    weights = [] if stage.merge_weights is None else stage.merge_weights[0].tolist()
    merged = {i: weight for i, weight in enumerate(weights) if weight > 0}
    present = set(stage.sources[0].sum(dim=0).nonzero().flatten().tolist())
    earlier = present - set(kept) - set(merged)
    gone = set(range(stage.sources.shape[2])) - present
    return StageView(stage.block, kept, merged, tuple(sorted(earlier)), tuple(sorted(gone)))


def _as_seen(image: Tensor, sight: Sight) -> Any:
    from PIL import Image

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (sight.mean, sight.std))
    pixels = (image.float() * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
