"""ToMe with what other files leave out: stochastic depth, and towers of a few tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorders import recorded_lengths
from towers import make_tower

from elip_plugin import ElipConfig, Stage, apply, plan
from elip_plugin.reducers.tome import merge_inside

RATE = 0.5
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
    for run in (block, lambda x: block(x, elip=merge_inside, **ALL)[0]):
        torch.manual_seed(0)
        out.append(run(x))
    torch.testing.assert_close(*out)
    # A quarter of the pictures lose both branches, and keep their tokens.
    same = (out[1] == x).flatten(1).all(dim=1)
    assert 4 <= same.sum() <= 32
    block.eval()
    torch.testing.assert_close(block(x), block(x, elip=merge_inside, **ALL)[0])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_every_merge_of_a_plan_has_a_partner(prefix: int) -> None:
    """A token of the first set needs one of the second; the first has half, rounded up."""
    checked = 0
    for patches in range(2, 40):
        for depth in (2, 3, 4, 6, 12, 24):
            for keep in (0.5, 0.9, 2):
                if (isinstance(keep, int) and keep + 1 >= patches) or int(keep * patches) < 1:
                    continue
                if isinstance(keep, float) and int(keep * patches) + 1 >= patches:
                    continue
                config = ElipConfig((Stage(0, 1, keep),), text_weight=0.0, reducer="tome")
                made = plan(config, num_patches=patches, depth=depth, prefix=prefix)
                for stage in made.stages:
                    present, left = stage.tokens_in - prefix, stage.tokens_out - prefix
                    assert left >= 1 and present - left <= (present + 1) // 2
                    checked += 1
    assert checked > 1000


@pytest.mark.parametrize("patches", [3, 4, 6])
def test_a_tower_of_a_few_patches_runs(patches: int, tiny_clip: Any) -> None:
    model = tiny_clip(image_size=[8, 8 * patches])
    handle = apply(model, {"preset": "half"} if patches > 3 else {**HALF, "merge": False})
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        model.encode_image(torch.randn(2, 3, 8, 8 * patches)).sum().backward()
    assert lengths == list(handle.plan.tokens) and lengths[-1] >= 2
