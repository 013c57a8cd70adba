"""What is not made of the usual parts, or is described otherwise, is refused with the part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hosts.anyvit import odd_blocks
from hosts.anyvit.odd_blocks import Block, Vit
from hosts.anyvit.test_found import same, state_of
from torch import Tensor, nn

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.parts import Parts

PARTS = Parts(
    "before", projections=("three",), heads=2, output=("out",), norm_2="between", mlp=("grow",)
)  # of `Block`
STAGES = [{"block": 1, "lookahead": 1, "keep": 0.5}]
IMAGES = torch.randn(2, 3, odd_blocks.SIDE, odd_blocks.SIDE)

BLOCKS: dict[type[Block], str] = {
    odd_blocks.PostNorm: r"the norm before the attention: .*post-norm",
    odd_blocks.NormOfWhatIsAdded: r"the norm before the attention: .*post-norm",
    odd_blocks.OtherScale: r"its result is not softmax.*a scale other than .*called one of",
    odd_blocks.Parallel: r"the MLP: .*parallel blocks",
    odd_blocks.ParallelOfOneNorm: r"the MLP: .*parallel blocks",
    odd_blocks.Rotary: r"the attention: it depends on the positions .*rotary",
    odd_blocks.BiasByDistance: r"the attention: it depends on the positions .*bias by position",
    odd_blocks.BiasTable: r"must run on any number of tokens",
    odd_blocks.Causal: r"the attention: not all tokens attend to all others .*mask",
    odd_blocks.Windows: r"block 0 .*the attention: not all tokens attend to all others \(windows",
    odd_blocks.Gated: r"what the attention adds: .*a gate",
    odd_blocks.GatedHeads: r"the attention: its result .*gated",
    odd_blocks.Cosine: r"the attention: its result is not softmax.*normalized",
    odd_blocks.SharedKeys: r"the attention's projections: .*keys that heads share",
    odd_blocks.HalfOfTheTokens: r"what the attention adds: .*a factor on the tokens",
    odd_blocks.GatedMlp: r"the MLP: .*a gate",
    odd_blocks.RandomInTraining: r"dropout: in training the block is random",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_other_parts(block: type[Block]) -> None:
    model = Vit(block).train()
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(UnsupportedModelError, match=BLOCKS[block]):
        elip_plugin.apply(model, "half")
    assert same(state_of(model), before) and torch.equal(torch.get_rng_state(), random)


def test_the_usual_block_is_found() -> None:
    described = elip_plugin.describe(Vit())
    assert described.tower.parts == {Block: PARTS}
    elip_plugin.apply(described, "half")


DESCRIPTIONS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "norms exchanged": (
        Block, {"norm_1": "between", "norm_2": "before"},
        "with, Parts.*norm_1='between'.*norm_2='before'.* scale None; .*describe.model. says what",
    ),
    "four heads of two": (Block, {"heads": 4}, "others than what it is described with, .*heads=4"),
    "no MLP activation": (Block, {"mlp": ("grow.0", "grow.2")}, r"mlp=\('grow.0', 'grow.2'\)"),
    "the MLP scaled": (Block, {"mlp": ("grow", "end")}, r"mlp=\('grow', 'end'\)"),
    "no projection": (Block, {"output": ()}, r"with, .*output=\(\)"),
    "no bias": (Block, {"projections": ("unbiased",)}, r"projections=\('unbiased',\)"),
    "post-norm": (odd_blocks.PostNorm, {}, "its own forward makes others"),
    "another scale": (odd_blocks.OtherScale, {}, "its own forward makes others"),
    "parallel": (odd_blocks.Parallel, {}, "its own forward makes others"),
    "rotary positions": (odd_blocks.Rotary, {}, "it depends on the positions"),
    "a gate": (odd_blocks.Gated, {}, "its own forward makes others"),
    "a part that is not there": (Block, {"norm_1": "absent"}, "does not run .*absent"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_wrong_description(name: str) -> None:
    make, changes, message = DESCRIPTIONS[name]
    model = Vit(make)
    for block in model.stack:
        block.end, three = nn.LayerNorm(odd_blocks.WIDTH), block.three  # type: ignore[assignment]
        block.unbiased = nn.Linear(odd_blocks.WIDTH, len(three.weight), bias=False)  # type: ignore
        block.unbiased.weight = three.weight  # type: ignore
        nn.init.uniform_(three.bias)  # type: ignore[union-attr, arg-type]
    before = state_of(model)
    with pytest.raises(UnsupportedModelError, match=message):
        elip_plugin.describe(model, block=replace(PARTS, **changes))
    assert same(state_of(model), before)


class NormsWhatIsAdded(PrunableBlock, odd_blocks.NormOfWhatIsAdded):
    """A user's class for a block whose norms are not found, since they come after its parts."""

    replaces = odd_blocks.NormOfWhatIsAdded

    def elip_attend(self, x: Tensor, bias: Tensor | None = None, **positions: Any) -> Any:
        q, k, v = self.split(x)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.before(self.out(mixed.transpose(1, 2).flatten(2))), k

    def elip_query_and_keys(self, query: Tensor, x: Tensor, **positions: Any) -> Any:
        return self.split(query)[0], self.split(x)[1]

    def elip_feed_forward(self, x: Tensor) -> Any:
        return self.between(self.grow(x))


BY_PARTS = replace(PARTS, norm_1="", output=("out", "before"), norm_2="", mlp=("grow", "between"))


@pytest.mark.parametrize("block", [NormsWhatIsAdded, BY_PARTS], ids=["class", "parts"])
def test_a_description_by_hand(block: Any) -> None:
    model = Vit(odd_blocks.NormOfWhatIsAdded).train()
    before, unpruned = state_of(model), model(IMAGES)
    described = elip_plugin.describe(model, block=block)
    handle = elip_plugin.apply(described, {"stages": STAGES, "text_weight": 0})
    assert not torch.equal(model(IMAGES), unpruned)
    handle.remove()
    assert same(state_of(model), before) and torch.equal(model(IMAGES), unpruned)
    scaled = Vit(odd_blocks.OtherScale)
    elip_plugin.describe(scaled, block=PARTS, scale=odd_blocks.WIDTH**-0.5)


def test_a_description_by_hand_is_checked_before_it_is_applied() -> None:
    model = Vit()
    described = elip_plugin.describe(model)
    wrong = replace(described.tower, parts={Block: replace(PARTS, norm_2="before")})
    before = state_of(model)
    with pytest.raises(UnsupportedModelError, match=r"block 0 .*norm_2='before'"):
        elip_plugin.apply(replace(described, tower=wrong), "half")
    assert same(state_of(model), before)


class AddsBetween(Vit):
    def run(self, x: Tensor) -> Any:
        for block in self.stack:
            x = block(x) + 1.0
        return x


class InPlaceBetween(Vit):
    def run(self, x: Tensor) -> Any:
        for block in self.stack:
            x = block(x).mul_(2.0)
        return x


class GivesPositions(Vit):
    def run(self, x: Tensor) -> Any:
        for block in self.stack:
            x = block(x, self.places)
        return x


class TakesPositions(Block):
    def forward(self, x: Tensor, places: Tensor | None = None) -> Any:
        return super().forward(x if places is None else x + places)


class NeedsAll(Vit):
    def forward(self, images: Tensor) -> Any:
        x = self.run(self.embed(images))[:, 1:]
        side = odd_blocks.SIDE // odd_blocks.PATCH
        return x.transpose(1, 2).reshape(len(x), odd_blocks.WIDTH, side, side).mean(dim=(2, 3))


class Shuffles(Vit):
    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images)[:, torch.randperm(odd_blocks.TOKENS)]


class ClassTokenLast(Vit):
    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images).roll(-1, dims=1)


class ColumnByColumn(Vit):
    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images.transpose(2, 3))


class NotTheList(Vit):
    def run(self, x: Tensor) -> Any:
        for block in self.stack._modules.values():
            x = block(x)
        return x


class TwoTowers(Vit):
    def __init__(self) -> None:
        super().__init__()
        self.other = Vit()

    def forward(self, images: Tensor) -> Any:
        return super().forward(images) + self.other(images)


TOWERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "adds between blocks": (AddsBetween, "changes the tokens between blocks 0 and 1"),
    "changes in place": (InPlaceBetween, "changes the tokens between blocks"),
    "gives positions": (lambda: GivesPositions(TakesPositions), r"given tensors besides .*rotary"),
    "random tokens": (Shuffles, r"tokens that enter its blocks are random"),
    "class token last": (ClassTokenLast, r"none is made of patch 0"),
    "column by column": (ColumnByColumn, r"none is made of patch 1"),
    "blocks not from the list": (NotTheList, "did not take its blocks from the list"),
    "two towers": (TwoTowers, r"several lists of blocks .*'stack', 'other.stack'"),
    "no blocks": (lambda: nn.Linear(2, 2), "in Linear no list of blocks was found"),
    "tokens only": (
        lambda: nn.Sequential(*(Block() for _ in range(3))), "no module was found that runs on im"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_of_another_kind(name: str) -> None:
    make, message = TOWERS[name]
    model = make()
    before = state_of(model)
    with pytest.raises(UnsupportedModelError, match=message):
        elip_plugin.apply(model, "half")
    assert same(state_of(model), before)


def test_a_tower_whose_head_needs_a_token_of_each_patch() -> None:
    model = NeedsAll().train()
    with pytest.raises(UnsupportedModelError, match="NeedsAll needs all tokens"):
        elip_plugin.apply(model, {"reducer": "random", "stages": STAGES})
    unpruned = model(IMAGES)
    elip_plugin.apply(model, "half")
    assert model(IMAGES).shape == unpruned.shape and not torch.equal(model(IMAGES), unpruned)


def test_one_of_two_towers() -> None:
    model = TwoTowers().train()
    described = elip_plugin.describe(model, blocks="other.stack")
    assert described.tower.module is model.other
