"""ToMe with what other files leave out: stochastic depth, and towers of a few tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorders import recorded_lengths
from towers import make_tower

from elip_plugin import ElipConfig, Stage, apply, plan
from elip_plugin.errors import PlanError
from elip_plugin.reducers import find_reducer
from elip_plugin.reducers.tome import ToMe, merge_inside

RATE = 0.5
TOME = find_reducer("tome")
ALL: dict[str, Any] = {"sizes": torch.ones(64, 9), "remove": 0, "prefix": 1}
"""Options of the mode that merge nothing in 64 pictures of 9 tokens."""

HALF = {"reducer": "tome", "stages": [{"block": 0, "lookahead": 1, "keep": 0.5}]}


def with_drop_path(kind: str) -> Any:
    """The blocks of a tower in training whose branches are dropped half of the time."""
    tower = make_tower(kind)
    apply(tower.model, {"reducer": "tome"})
    blocks = tower.blocks(tower.model.train())
    for block in blocks:
        for name in ("drop_path", "drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, drop_path(kind))
    return blocks


def drop_path(kind: str) -> Any:
    if kind == "timm":
        return pytest.importorskip("timm.layers").DropPath(RATE)
    return pytest.importorskip("timm.models.layers").DropPath(RATE)


@pytest.mark.parametrize("kind", ["timm", "LAVIS"])
def test_stochastic_depth_drops_what_a_block_adds_as_in_the_host(kind: str) -> None:
    block = with_drop_path(kind)[0]
    x = torch.randn(64, 9, 32)
    out = []
    for run in (block, lambda x: block(x, run=merge_inside, how=ToMe(), **ALL)[0]):
        torch.manual_seed(0)
        out.append(run(x))
    torch.testing.assert_close(*out)
    # A quarter of the pictures lose both branches, and keep their tokens.
    same = (out[1] == x).flatten(1).all(dim=1)
    assert 4 <= same.sum() <= 32
    block.eval()
    torch.testing.assert_close(block(x), block(x, run=merge_inside, how=ToMe(), **ALL)[0])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_every_merge_of_a_plan_has_a_partner(prefix: int) -> None:
    """A token of the first set needs one of the second; the first has half, rounded up."""
    checked = refused = 0
    for patches in range(2, 40):
        for depth in (2, 3, 4, 6, 12, 24):
            for keep in (0.2, 0.35, 0.49, 0.5, 0.9, 2):
                kept = keep if isinstance(keep, int) else int(keep * patches)
                if kept < 1 or kept + 1 >= patches:
                    continue
                config = ElipConfig((Stage(0, 1, keep),), text_weight=0.0, reducer=TOME)
                try:
                    made = plan(config, num_patches=patches, depth=depth, prefix=prefix)
                except PlanError:
                    refused += 1
                    assert kept + 1 < patches * (2 - 0.5 ** (depth - 1)) / depth
                    continue
                for stage in made.stages:
                    present, left = stage.tokens_in - prefix, stage.tokens_out - prefix
                    assert left >= 1 and present - left <= (present + 1) // 2
                    checked += 1
    assert checked > 2000 and refused > 100


@pytest.mark.parametrize(("depth", "patches"), [(6, 64), (12, 196), (24, 256), (27, 729)])
def test_below_half_each_block_keeps_the_same_share(depth: int, patches: int) -> None:
    """As many token-layers as the stages ask for: an even spread has no more to give."""
    even = plan(ElipConfig.preset("half"), num_patches=patches, depth=depth)
    before = even.tokens
    for keep in (0.48, 0.45, 0.42, 0.39, 0.36):
        stages = (Stage(0, 1, keep),)
        config = ElipConfig(stages, text_weight=0.0, reducer=TOME, merge=False)
        made = plan(config, num_patches=patches, depth=depth)
        left = [tokens - 1 for tokens in made.tokens]
        assert sum(left) == pytest.approx(keep * patches * depth, abs=depth)
        assert sum(made.tokens) < sum(before)
        share = (left[1] / left[0], left[depth // 2] / left[depth // 2 - 1])
        assert share[0] == pytest.approx(share[1], abs=1 / left[depth // 2])
        before = made.tokens


def test_more_than_pairs_can_give_is_one_error() -> None:
    config = ElipConfig((Stage(0, 1, 0.25),), text_weight=0.0, reducer=TOME)
    with pytest.raises(PlanError, match=r"leaves 0\.33 or more, and the stages ask for 0\.27"):
        plan(config, num_patches=64, depth=6)


@pytest.mark.parametrize("patches", [3, 4, 6])
def test_a_tower_of_a_few_patches_runs(patches: int, tiny_clip: Any) -> None:
    model = tiny_clip(image_size=[8, 8 * patches])
    handle = apply(model, {"preset": "half"} if patches > 3 else {**HALF, "merge": False})
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        model.encode_image(torch.randn(2, 3, 8, 8 * patches)).sum().backward()
    assert lengths == list(handle.plan.tokens) and lengths[-1] >= 2
