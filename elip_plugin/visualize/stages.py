"""Run pictures through a model, text by text, and record what each stage did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from elip_plugin.api import find_handle
from elip_plugin.core.trace import MERGED, StageTrace
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import label_of
from elip_plugin.measure.preview import image_only
from elip_plugin.patching.install import find_pruner
from elip_plugin.pictures import Item, read_picture
from elip_plugin.visualize.views import Row, StageView, Visualization

MOST_STAGES = 4
"""Stages drawn at most, the last one and others at even distances."""


def visualize(
    host_model: HostModel, pictures: Sequence[Item], texts: Sequence[str]
) -> Visualization:
    """Run pictures through a model."""
    handle = find_handle(host_model.model)
    if texts and handle.config.text_weight == 0:
        raise ConfigError(
            f"{host_model.name} is pruned by the image alone (text_weight 0), so a text changes "
            "nothing: leave --text out"
        )
    if not texts and any(picture.caption is None for picture in pictures):
        image_only(handle.config)  # refuses what cannot choose without a text
    rows: list[Row] = []
    shown = []
    for place, picture in enumerate(pictures):
        image = host_model.preprocess(read_picture(picture)).unsqueeze(0)
        shown.append((picture.name, _as_seen(image[0], host_model)))
        first: tuple[int, ...] | None = None
        own = [None] if handle.config.text_weight == 0 else [picture.caption]
        for text in texts or own:  # a plan that reads no text is given none
            stages = _run(host_model, image, text)
            last = stages[-1].kept
            differing = None if first is None else len(set(last) - set(first))
            first = last if first is None else first
            rows.append(Row(place, text, stages, differing))
    return Visualization(
        label_of(host_model),
        handle.plan.summary(),
        host_model.grid_size,
        tuple(shown),
        tuple(rows),
    )


def _run(host_model: HostModel, image: Tensor, text: str | None) -> tuple[StageView, ...]:
    handle, pruner = find_handle(host_model.model), find_pruner(host_model.model)
    with torch.no_grad(), ExitStack() as stack:
        # By text too, in evaluation: nothing is scored here, so nothing leaks.
        stack.enter_context(pruner.asked(eval_mode="image" if text is None else "text"))
        if text is not None:
            guide = host_model.guide(host_model.tokenize([text]))
            stack.enter_context(pruner.asked(guide=guide))
        trace = stack.enter_context(handle.trace())
        host_model.encode_image(image)
    if not trace.stages:
        raise UnsupportedModelError(
            f"reducer {pruner.reducer.name!r} records no stages, so there is nothing to draw"
        )
    views: list[StageView] = []
    for stage in trace.stages:
        views.append(view_of(stage, views[-1] if views else None))
    # A picture of all stages of a reducer that merges in every block would be too wide to read.
    step = max(1, -(-len(views) // MOST_STAGES))
    return tuple(views[::-1][::step][::-1])


def view_of(stage: StageTrace, before: StageView | None) -> StageView:
    """Tell what one stage did to each patch, after what the stage before it did."""
    kept = tuple(i for i in stage.kept[0].tolist() if i != MERGED)
    present = set(stage.sources[0].sum(dim=0).nonzero().flatten().tolist())
    gone = set(range(stage.sources.shape[2])) - present
    merged: dict[int, float] = {}
    earlier = present - set(kept)
    if stage.merge_weights is not None:  # what is not kept is merged, though its weight may be 0
        there_before = set() if before is None else {*before.merged, *before.earlier}
        weights = stage.merge_weights[0].tolist()
        merged = {i: w for i, w in enumerate(weights) if w > 0 or i in gone - there_before}
        earlier, gone = (earlier | gone) - set(merged), set()
    groups: dict[int, list[int]] = {}
    for patch, token in enumerate([] if stage.groups is None else stage.groups[0].tolist()):
        groups.setdefault(token, []).append(patch)
    several = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    rest = tuple(sorted(earlier)), tuple(sorted(gone))
    return StageView(stage.block, kept, merged, *rest, stage.until, several)


def _as_seen(image: Tensor, host_model: HostModel) -> Any:
    from PIL import Image

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (host_model.mean, host_model.std))
    pixels = (image.float() * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
