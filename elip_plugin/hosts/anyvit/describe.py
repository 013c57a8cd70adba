"""Describing a vision transformer of no known host: find its tower, read its blocks, check both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.check import check
from elip_plugin.hosts.anyvit.consumer import why_all_tokens
from elip_plugin.hosts.anyvit.copies import few_tokens, returns_tuple, without_traces
from elip_plugin.hosts.anyvit.entry import find_input
from elip_plugin.hosts.anyvit.finder import find_tower, sides_of
from elip_plugin.hosts.anyvit.reading import read_block
from elip_plugin.hosts.anyvit.rehearsal import rehearse
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.wrappers import unwrap


def describe(
    model: nn.Module,
    *,
    blocks: str | None = None,
    block: Parts | type[PrunableBlock] | None = None,
    scale: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Description:
    """Describe a vision transformer of no known host, and check the description by numbers.

    What is not given is found by running copies. Nothing of the model changes.

    Args:
        model: A model with a vision transformer, or the transformer by itself.
        blocks: Path of the list of its blocks, such as "visual.layers".
        block: Where its blocks have their parts, or their patched class.
        scale: Factor on the attention's logits; with `block`, None for (A / H) ** -0.5.
        image_size: Pixels of a side of its images, or rows and columns.

    Returns:
        A description, for `apply`.

    Raises:
        UnsupportedModelError: If there is no tower of usual blocks, with what differs.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> description = describe(VisionTransformer(32, 8, 12, 2, 32, 64))
        >>> description.tower.shape
        TowerShape(num_patches=16, depth=12, width=32, prefix=1, class_query=True, frozen=False)
    """
    model = unwrap(model)
    refuse_quantized(model)
    sides = sides_of(model)
    if image_size is not None:
        sides = [(image_size, image_size) if isinstance(image_size, int) else image_size]
    with without_traces():
        trial = find_tower(model, blocks, sides)
        tower: Any = model.get_submodule(trial.path)
        listed: Any = tower.get_submodule(trial.blocks)
        block_input = find_input(trial)
        calling, width = block_input.calling, block_input.width
        tokens, few = few_tokens(calling, block_input.prefix)
        as_tuple = returns_tuple(listed[0], width, few, tokens)
        calling, few = (replace(each, as_tuple=as_tuple) for each in (calling, few))
        if block is None:
            block, scale = read_block(listed[0], width, few, tokens)
        class_query, norm = rehearse(trial, calling, block_input.prefix)
    described = Tower(
        tower,
        trial.blocks,
        {type(each): block for each in listed},
        block_input.num_patches,
        width,
        block_input.prefix,
        class_query,
        scale,
        norm,
        block_input.patch_embed,
        entries=("forward", "forward_features"),
        calling=calling,
    )
    check(described)
    height, width = trial.images.shape[2:]
    needs_all = why_all_tokens(model, described, trial.path, (height, width))
    return Description(model, described, no_dropping=needs_all)


def refuse_quantized(model: nn.Module) -> None:
    """Refuse weights that cannot be drawn anew, and compared in float64."""
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if callable(weight) or type(getattr(weight, "data", Tensor())) is not Tensor:
            raise UnsupportedModelError(
                f"{path!r} is quantized, and blocks are checked by their numbers: call "
                "elip_plugin.apply(model) first, and quantize the model then"
            )
